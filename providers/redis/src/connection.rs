//! Connections to Redis servers, shared by links with equal settings. Every wait has an end, so a server that accepts and
//! never answers is a state as well as one that is down.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, TlsCertificates,
};
use trellis_provider::{Dial, Dialed, LinkError, Pem, Shared, Threads, explained};
use trellis_wire::CallError;

use crate::config::Settings;

/// The oldest server that has what the queues build on: XAUTOCLAIM and trimming by id.
const SERVER_MIN: (u64, u64) = (6, 2);
/// How long one answer may take, connecting included.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Requests on their way at once; more wait for their turn.
const REQUESTS_MAX: usize = 1_024;

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

    /// The one to this server that all share.
    pub(crate) fn get(&self, settings: &Settings) -> Result<Arc<Connection>, LinkError> {
        self.shared.get(settings, || self.own(settings))
    }

    /// One more. It connects by itself.
    pub(crate) fn own(&self, settings: &Settings) -> Result<Arc<Connection>, LinkError> {
        let server = Server { client: client(settings)?, shown: settings.shown() };
        Ok(Arc::new(Connection(Dialed::new(server, &self.threads))))
    }
}

/// A connection to one server.
#[derive(Debug)]
pub(crate) struct Connection(Arc<Dialed<Server>>);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The server cannot be reached, or did not answer: what was asked may have happened or not.
    Away(String),
    /// The server said no.
    Refused(RedisError),
}

impl Connection {
    /// `not connected to URL: reason`, unless it is.
    pub(crate) fn health(&self) -> Result<(), String> {
        self.0.health()
    }

    /// Runs a script.
    pub(crate) async fn run<T: FromRedisValue>(&self, script: &redis::ScriptInvocation<'_>) -> Result<T, Unanswered> {
        self.ask(|mut connection| async move { script.invoke_async(&mut connection).await }).await
    }

    /// Sends one command.
    pub(crate) async fn send<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, Unanswered> {
        self.ask(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    async fn ask<T, F>(&self, asking: impl FnOnce(MultiplexedConnection) -> F) -> Result<T, Unanswered>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let (number, connection) = self.0.get().await.map_err(Unanswered::Away)?;
        match asking(connection).await {
            Ok(answer) => Ok(answer),
            Err(why) if is_refusal(&why) => Err(Unanswered::Refused(why)),
            Err(why) => Err(Unanswered::Away(self.0.broke(number, &failed(&why)))),
        }
    }
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Away(why) => f.write_str(why),
            Self::Refused(why) => write!(f, "{why}"),
        }
    }
}

impl From<Unanswered> for String {
    fn from(why: Unanswered) -> Self {
        why.to_string()
    }
}

impl From<Unanswered> for CallError {
    fn from(unanswered: Unanswered) -> Self {
        let text = unanswered.to_string();
        match &unanswered {
            Unanswered::Away(_) => Self::Unavailable(text),
            Unanswered::Refused(why) => match why.kind() {
                ErrorKind::Server(ServerErrorKind::NoPerm) => Self::Denied(text),
                ErrorKind::Server(ServerErrorKind::ResponseError) => Self::Invalid(text),
                _ if why.code() == Some("WRONGTYPE") => Self::Invalid(text),
                _ => Self::Unavailable(text),
            },
        }
    }
}

/// A server, and who we are there.
#[derive(Debug)]
struct Server {
    client: Client,
    shown: String,
}

#[async_trait]
impl Dial for Server {
    type Connection = MultiplexedConnection;

    fn shown(&self) -> &str {
        &self.shown
    }

    async fn dial(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_MAX))
            .set_response_timeout(Some(ANSWER_MAX))
            .set_concurrency_limit(REQUESTS_MAX);
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = made.map_err(|why| failed(&why))?;
        match redis::cmd("INFO").arg("server").query_async::<String>(&mut connection).await {
            Ok(info) => check_version(&info)?,
            // Who may not ask for the version is let in by the server all the same.
            Err(why) if why.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {}
            Err(why) => return Err(failed(&why)),
        }
        Ok(connection)
    }

    async fn look(&self, connection: &MultiplexedConnection) -> Result<(), String> {
        let answered = redis::cmd("PING").query_async::<redis::Value>(&mut connection.clone()).await;
        match answered {
            Err(why) if !is_refusal(&why) => Err(failed(&why)),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn client(settings: &Settings) -> Result<Client, LinkError> {
    let Settings { host, port, tls, database, access } = settings;
    let mut login = RedisConnectionInfo::default().set_db(*database);
    if let Some(user) = &access.user {
        login = login.set_username(user.expose());
    }
    if let Some(password) = &access.password {
        login = login.set_password(password.expose());
    }
    let addr = if *tls {
        // Another crate may have chosen one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host.clone(), *port)
    };
    let failed = |why: RedisError| LinkError::config("url", why.to_string());
    let info = addr.into_connection_info().map_err(failed)?.set_redis_settings(login);
    if access.tls.is_empty() {
        return Client::open(info).map_err(failed);
    }
    // The library says only that something is wrong, and of a key that fits another certificate only when it connects.
    access.tls.client()?;
    let identity = access.tls.identity.as_ref().map(|(certificate, key)| {
        Ok::<_, LinkError>(ClientTlsConfig { client_cert: certificate.bytes()?, client_key: key.bytes()? })
    });
    let files = TlsCertificates {
        client_tls: identity.transpose()?,
        root_cert: access.tls.ca.as_ref().map(Pem::bytes).transpose()?,
    };
    Client::build_with_tls(info, files).map_err(|why| LinkError::config("tls_ca", why.to_string()))
}

/// Why it did not work, with the fix where there is one.
fn failed(why: &RedisError) -> String {
    match (why.kind(), why.code()) {
        _ if why.is_timeout() => format!("no answer within {ANSWER_MAX:?}"),
        (_, Some("NOAUTH")) => format!("the server asks for a login: give `password` in the link ({why})"),
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => {
            format!("the login is refused: check `user` and `password` of the link ({why})")
        }
        _ => explained(&why.to_string()).into_owned(),
    }
}

/// Whether the server answered, with a no: the connection stands.
fn is_refusal(why: &RedisError) -> bool {
    matches!(why.kind(), ErrorKind::Server(kind) if kind != ServerErrorKind::BusyLoading)
        || (why.code().is_some() && !why.is_io_error())
        || matches!(why.kind(), ErrorKind::UnexpectedReturnType)
}

fn check_version(info: &str) -> Result<(), String> {
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default().trim();
    let mut numbers = version.split('.').map(|number| number.parse::<u64>().unwrap_or_default());
    let found = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if found < SERVER_MIN {
        let (major, minor) = SERVER_MIN;
        return Err(format!("it is Redis {version}, and Redis {major}.{minor} or later is needed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_refused_by_name() {
        assert_eq!(check_version("# Server\r\nredis_version:6.2.0\r\nx:y\r\n"), Ok(()));
        assert_eq!(check_version("redis_version:10.0.1\r\n"), Ok(()));
        let why = check_version("redis_version:6.0.16\r\n").unwrap_err();
        assert_eq!(why, "it is Redis 6.0.16, and Redis 6.2 or later is needed");
    }
}
