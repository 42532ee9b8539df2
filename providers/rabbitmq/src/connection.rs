//! Connections to RabbitMQ, shared by links with equal settings. Every wait has an end. A dead node is noticed by the
//! server within two heartbeats, which is how long its claims last at most.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::tcp::{AMQPUriTcpExt as _, RustlsConnector};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Confirmation, ConnectionProperties, Error, ErrorKind};
use tokio::sync::Mutex;
use tokio::time::Instant;
use trellis_provider::{Dial, Dialed, LinkError, Shared, Threads, explained};
use trellis_wire::Secret;

use crate::config::Settings;

/// How long one answer may take.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Seconds between heartbeats.
const HEARTBEAT_SECS: u16 = 5;
/// Who a link is that names no user.
const USER_DEFAULT: &str = "guest";

/// A connection that is kept.
pub(crate) type Connection = Dialed<Server>;

/// Every connection of this node's provider. One that no link uses any more is closed.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    threads: Threads,
    shared: Shared<Settings, Connection>,
}

impl Connections {
    /// On these threads.
    pub(crate) fn on(threads: Threads) -> Self {
        Self { threads, shared: Shared::default() }
    }

    /// The one to this server that all share. It connects by itself.
    pub(crate) fn get(&self, settings: &Settings) -> Result<Arc<Connection>, LinkError> {
        self.shared.get(settings, || Ok(Dialed::new(Server::new(settings)?, &self.threads)))
    }
}

/// A server, and who we are there.
#[derive(Debug)]
pub(crate) struct Server {
    settings: Settings,
    shown: String,
    tls: Option<RustlsConnector>,
}

impl Server {
    fn new(settings: &Settings) -> Result<Self, LinkError> {
        let tls = settings.tls.then(|| settings.access.tls.client()).transpose()?;
        Ok(Self { shown: settings.shown(), settings: settings.clone(), tls: tls.map(RustlsConnector::from) })
    }

    /// Without TLS, which the library would have trust no CA but one it is given: [`Server::dial`] lays it over the connection.
    fn uri(&self) -> AMQPUri {
        let Settings { host, port, vhost, access, .. } = &self.settings;
        let word = |given: &Option<Secret>| given.as_ref().map_or(USER_DEFAULT, Secret::expose).to_owned();
        let (username, password) = (word(&access.user), word(&access.password));
        AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo: AMQPUserInfo { username, password }, host: host.clone(), port: *port },
            vhost: vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT_SECS), ..AMQPQueryString::default() },
        }
    }
}

#[async_trait]
impl Dial for Server {
    type Connection = Arc<Line>;

    fn shown(&self) -> &str {
        &self.shown
    }

    async fn dial(&self) -> Result<Arc<Line>, String> {
        let options = ConnectionProperties::default().with_connection_name("trellis provider".into());
        let runtime = lapin::runtime::default_runtime().map_err(|why| why.to_string())?;
        let (tls, host) = (self.tls.clone(), self.settings.host.clone());
        let connecting = lapin::Connection::connector(
            self.uri(),
            runtime,
            async move |uri, runtime| {
                let plain = uri.connect_async(&runtime).await?;
                Ok(match &tls {
                    Some(tls) => plain.into_rustls(tls, &host).await?,
                    None => plain,
                })
            },
            options,
        );
        let connection = within(connecting).await.map_err(|why| match &why {
            Unanswered::Refused(code, _) if *code == ACCESS_REFUSED => {
                format!("the login is refused: check `user` and `password` of the link ({why})")
            }
            _ => explained(&why.to_string()).into_owned(),
        })?;
        let opened = Instant::now();
        Ok(Arc::new(Line { connection, opened, publishing: Mutex::default(), walks: Shared::default() }))
    }

    async fn look(&self, line: &Arc<Line>) -> Result<(), String> {
        if line.connection.status().connected() { Ok(()) } else { Err("the connection broke".into()) }
    }
}

/// A connection that stands.
#[derive(Debug)]
pub(crate) struct Line {
    connection: lapin::Connection,
    opened: Instant,
    /// For publishing, with confirms.
    publishing: Mutex<Option<Channel>>,
    /// By queue of dead letters: held by whoever walks over it.
    walks: Shared<String, Mutex<()>>,
}

/// No such queue or exchange.
pub(crate) const NOT_FOUND: u16 = 404;
/// It is there, and is not as it was asked for.
pub(crate) const PRECONDITION_FAILED: u16 = 406;
/// The login is wrong, or a queue is in exclusive use.
pub(crate) const ACCESS_REFUSED: u16 = 403;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The server said no: its code and text.
    Refused(u16, String),
    /// It cannot be reached, or did not answer: what was asked may have happened or not.
    Away(String),
}

impl Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(_, why) | Self::Away(why) => f.write_str(why),
        }
    }
}

impl From<Unanswered> for String {
    fn from(why: Unanswered) -> Self {
        why.to_string()
    }
}

impl From<Error> for Unanswered {
    fn from(why: Error) -> Self {
        match why.kind() {
            ErrorKind::ProtocolError(error) => Self::Refused(error.get_id(), error.get_message().to_string()),
            _ => Self::Away(why.to_string()),
        }
    }
}

/// Awaits an answer, but not for ever.
pub(crate) async fn within<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Unanswered> {
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Unanswered::Away(format!("no answer within {ANSWER_MAX:?}"))),
    }
}

impl Line {
    pub(crate) async fn channel(&self) -> Result<Channel, Unanswered> {
        within(self.connection.create_channel()).await
    }

    /// Held by whoever walks over this queue of dead letters.
    pub(crate) fn walk(&self, queue: &str) -> Arc<Mutex<()>> {
        let Ok(walk) = self.walks.get(&queue.to_owned(), || Ok::<_, Infallible>(Arc::default()));
        walk
    }

    /// How long it stands.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// How many messages wait in a queue that is there.
    pub(crate) async fn waiting(&self, channel: &Channel, queue: &str) -> Result<u64, Unanswered> {
        self.stands(channel, queue).await.map(|(waiting, _)| waiting)
    }

    /// How many messages wait in a queue that is there, and how many consumers it has.
    pub(crate) async fn stands(&self, channel: &Channel, queue: &str) -> Result<(u64, u32), Unanswered> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = within(channel.queue_declare(queue.into(), passive, FieldTable::default())).await?;
        Ok((u64::from(declared.message_count()), declared.consumer_count()))
    }

    /// Makes a durable queue, or finds it as it was made before.
    pub(crate) async fn declare(&self, queue: &str, arguments: FieldTable) -> Result<(), Unanswered> {
        let channel = self.channel().await?;
        within(channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)).await?;
        close(&channel).await;
        Ok(())
    }

    /// Publishes, and returns when the server has stored the message. Whether there was a queue for it.
    pub(crate) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<bool, Unanswered> {
        let channel = self.publishing().await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published = channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties);
        let confirmed = async { published.await?.await };
        match within(confirmed).await? {
            Confirmation::Ack(returned) => Ok(returned.is_none()),
            Confirmation::Nack(_) => {
                Err(Unanswered::Refused(0, "it has no room for the message, or cannot store it".into()))
            }
            Confirmation::NotRequested => Err(Unanswered::Away("it confirms nothing".into())),
        }
    }

    async fn publishing(&self) -> Result<Channel, Unanswered> {
        let mut publishing = self.publishing.lock().await;
        if let Some(channel) = publishing.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        let channel = self.channel().await?;
        within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        *publishing = Some(channel.clone());
        Ok(channel)
    }
}

/// Closes a channel that is not needed any more; what it still held goes back. One that broke is closed already.
pub(crate) async fn close(channel: &Channel) {
    if let Err(why) = within(channel.close(200, "done".into())).await {
        tracing::debug!(%why, "a channel was closed already");
    }
}

/// A name as the protocol has it: at most 255 bytes.
pub(crate) fn check_name(key: &str, text: &str, bytes_max: usize) -> Result<String, LinkError> {
    if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) {
        return Err(LinkError::config(key, format!("`{text}`: 1 to {bytes_max} bytes of printable text are expected")));
    }
    Ok(text.into())
}
