//! What a link's configuration says of the server and of what is asked of it.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5;
use rumqttc::{TlsConfiguration, Transport};
use trellis_provider::{Access, LinkError, check_url};
use trellis_wire::{Config, Link};
use uuid::Uuid;

/// Where a link that names no server goes.
const URL_DEFAULT: &str = "mqtt://127.0.0.1:1883";
/// How long connecting may take, TLS and log-in included, in seconds.
pub(crate) const CONNECT_MAX_SECS: u64 = 5;
/// How often an idle connection is checked.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest packet that is taken, in bytes: an MQTT 5 server keeps larger ones to itself.
pub const PACKET_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// Largest packet that is read over MQTT 3.1.1, which tells the server no bound: between the two it is put aside.
const PACKET_READ_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages that the server may have out with a link before it acknowledges one. MQTT 3.1.1 has no word for it.
pub const RECEIVE_MAX: u16 = 64;
/// Messages of a publisher that wait for the server's word.
const SEND_MAX: u16 = 256;
/// How long a server keeps the session of a node that is away, in seconds: seven days, after which a node is forgotten.
const SESSION_SECS: u32 = 7 * 24 * 60 * 60;

/// The version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1.
    V3,
}

/// How often a message may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Qos {
    /// 0.
    AtMostOnce,
    /// 1.
    AtLeastOnce,
}

/// What the server is to keep of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Session {
    /// Nothing: its id is its own.
    Passing,
    /// Under this id, what came while it was away.
    Lasting(String),
    /// Nothing any more of what it kept under this id.
    Over(String),
}

/// Everything that a connection is made with.
#[derive(Clone)]
pub(crate) enum Options {
    V5(Box<v5::MqttOptions>),
    V3(Box<rumqttc::MqttOptions>),
}

impl Qos {
    /// What the link asks for: 1 unless it says otherwise.
    pub(crate) fn read(config: &Config) -> Result<Self, LinkError> {
        match config.get("qos") {
            None | Some("1") => Ok(Self::AtLeastOnce),
            Some("0") => Ok(Self::AtMostOnce),
            Some(other) => {
                let problem = format!("`{other}`: `0` (at most once) or `1` (at least once) is expected");
                Err(LinkError::config("qos", problem))
            }
        }
    }
}

/// A server, and who a link is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    host: String,
    port: u16,
    tls: bool,
    access: Access,
    protocol: Protocol,
}

impl Settings {
    pub(crate) fn read(link: &Link) -> Result<Self, LinkError> {
        const KEY: &str = "url";
        let text = link.config.get(KEY).unwrap_or(URL_DEFAULT);
        check_url(KEY, text)?;
        let wrong =
            |why: &str| LinkError::config(KEY, format!("`{text}` {why}; write mqtt://HOST:PORT, or mqtts:// for TLS"));
        let (tls, rest) = match text.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) => (true, rest),
            _ => return Err(wrong("is no URL of MQTT")),
        };
        if rest.contains('@') {
            return Err(wrong("names a user: write `user` in the link's config instead"));
        }
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("has no number as its port"))?)
            }
            _ => (rest, if tls { 8883 } else { 1883 }),
        };
        if host.is_empty() || host.contains(['/', '?', '#']) {
            return Err(wrong("has no host, or more than host and port"));
        }
        let access = Access::read(link)?;
        if !tls && !access.tls.is_empty() {
            return Err(wrong("is without TLS, and TLS files are given"));
        }
        if access.password.is_some() && access.user.is_none() {
            return Err(LinkError::config("user", "is needed beside `password`"));
        }
        let protocol = match link.config.get("protocol") {
            None | Some("5" | "5.0") => Protocol::V5,
            Some("3.1.1") => Protocol::V3,
            Some(other) => {
                return Err(LinkError::config("protocol", format!("`{other}`: `5` or `3.1.1` is expected")));
            }
        };
        Ok(Self { host: host.into(), port, tls, access, protocol })
    }

    /// Whether messages have headers there.
    pub(crate) fn has_headers(&self) -> bool {
        self.protocol == Protocol::V5
    }

    /// The server as people see it. Nothing in it is secret.
    pub(crate) fn shown(&self) -> String {
        format!("{}://{}:{}", if self.tls { "mqtts" } else { "mqtt" }, self.host, self.port)
    }

    /// What makes a connection.
    pub(crate) fn options(&self, session: &Session) -> Result<Options, LinkError> {
        let (id, is_clean) = match session {
            Session::Passing => (format!("trellis-{}", Uuid::now_v7().simple()), true),
            Session::Lasting(id) => (id.clone(), false),
            Session::Over(id) => (id.clone(), true),
        };
        let login = self
            .access
            .user
            .as_ref()
            .map(|user| (user.expose(), self.access.password.as_ref().map_or("", |password| password.expose())));
        let transport = self.transport()?;
        Ok(match self.protocol {
            Protocol::V5 => {
                let mut options = v5::MqttOptions::new(id, &self.host, self.port);
                options.set_keep_alive(KEEP_ALIVE).set_connection_timeout(CONNECT_MAX_SECS).set_transport(transport);
                options.set_clean_start(is_clean).set_session_expiry_interval((!is_clean).then_some(SESSION_SECS));
                options.set_max_packet_size(Some(PACKET_BYTES_MAX)).set_receive_maximum(Some(RECEIVE_MAX));
                options.set_manual_acks(true).set_outgoing_inflight_upper_limit(SEND_MAX);
                if let Some((user, password)) = login {
                    options.set_credentials(user, password);
                }
                Options::V5(Box::new(options))
            }
            Protocol::V3 => {
                let mut options = rumqttc::MqttOptions::new(id, &self.host, self.port);
                options.set_keep_alive(KEEP_ALIVE).set_transport(transport).set_clean_session(is_clean);
                options.set_max_packet_size(PACKET_READ_BYTES_MAX, PACKET_READ_BYTES_MAX);
                options.set_manual_acks(true).set_inflight(SEND_MAX);
                if let Some((user, password)) = login {
                    options.set_credentials(user, password);
                }
                Options::V3(Box::new(options))
            }
        })
    }

    fn transport(&self) -> Result<Transport, LinkError> {
        if !self.tls {
            return Ok(Transport::Tcp);
        }
        let tls = self.access.tls.client()?;
        Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))))
    }
}

#[cfg(test)]
mod tests {
    use trellis_provider::testing::lab::link;

    use super::*;

    #[test]
    fn urls_are_read_or_refused_with_what_to_write() {
        let read = |url: &str| {
            let settings = Settings::read(&link("messaging", &[("url", url)]));
            settings.map(|read| read.shown()).map_err(|why| why.to_string())
        };
        assert_eq!(read(""), Ok(URL_DEFAULT.into()));
        assert_eq!(read("mqtt://hub"), Ok("mqtt://hub:1883".into()));
        assert_eq!(read("mqtts://hub"), Ok("mqtts://hub:8883".into()));
        assert_eq!(read("mqtt://[::1]:1884"), Ok("mqtt://[::1]:1884".into()));
        for wrong in ["hub:1883", "tcp://hub", "mqtt://hub:x", "mqtt://hub/topic", "mqtt://me@hub"] {
            let why = read(wrong).unwrap_err();
            assert!(why.starts_with("config `url`") && why.contains("mqtt://HOST:PORT"), "{wrong}: {why}");
        }
        let why = read("mqtt://me:s3cret@hub").unwrap_err();
        assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
    }
}
