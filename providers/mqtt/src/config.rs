//! What a link's configuration says of the server.

use std::time::Duration;

use rumqttc::v5::MqttOptions;
use rumqttc::{TlsConfiguration, Transport};
use trellis_provider::{Access, LinkError, check_url};
use trellis_wire::Link;
use uuid::Uuid;

/// Where a link that names no server goes.
const URL_DEFAULT: &str = "mqtt://127.0.0.1:1883";
/// How long connecting may take, TLS and log-in included, in seconds.
const CONNECT_MAX_SECS: u64 = 5;
/// How often an idle connection is checked.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Largest packet that is taken, in bytes: the server keeps larger ones to itself.
const PACKET_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// A server, and who a link is there.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    host: String,
    port: u16,
    tls: bool,
    access: Access,
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
        if !tls && access.has_tls() {
            return Err(wrong("is without TLS, and TLS files are given"));
        }
        if access.password.is_some() && access.user.is_none() {
            return Err(LinkError::config("user", "is needed beside `password`"));
        }
        Ok(Self { host: host.into(), port, tls, access })
    }

    /// The server as people see it. Nothing in it is secret.
    pub(crate) fn shown(&self) -> String {
        format!("{}://{}:{}", if self.tls { "mqtts" } else { "mqtt" }, self.host, self.port)
    }

    /// What makes a connection with an id of its own.
    pub(crate) fn options(&self) -> Result<MqttOptions, LinkError> {
        let id = format!("trellis-{}", Uuid::now_v7().simple());
        let mut options = MqttOptions::new(id, &self.host, self.port);
        options.set_keep_alive(KEEP_ALIVE).set_connection_timeout(CONNECT_MAX_SECS);
        options.set_clean_start(true).set_max_packet_size(Some(PACKET_BYTES_MAX));
        let Access { user, password, ca, identity } = &self.access;
        if let Some(user) = user {
            options.set_credentials(user, password.as_ref().map_or("", |password| password.expose()));
        }
        if self.tls {
            // Another crate may have chosen one already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let Some(ca) = ca else {
                return Err(LinkError::config("tls_ca", "is needed for mqtts://: PEM of the CA to trust, or a path"));
            };
            let identity =
                identity.as_ref().map(|(certificate, key)| Ok::<_, LinkError>((certificate.bytes()?, key.bytes()?)));
            let tls = TlsConfiguration::Simple { ca: ca.bytes()?, alpn: None, client_auth: identity.transpose()? };
            options.set_transport(Transport::tls_with_config(tls));
        }
        Ok(options)
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
