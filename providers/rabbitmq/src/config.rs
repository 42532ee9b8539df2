//! What a link's configuration says of the server.

use trellis_provider::{Access, LinkError, check_url};
use trellis_wire::Link;

/// Where a link that names no server goes.
const URL_DEFAULT: &str = "amqp://127.0.0.1:5672";

/// All that makes a connection what it is: links with equal settings share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    pub(crate) vhost: String,
    pub(crate) access: Access,
}

impl Settings {
    pub(crate) fn read(link: &Link) -> Result<Self, LinkError> {
        const KEY: &str = "url";
        let text = link.config.get(KEY).unwrap_or(URL_DEFAULT);
        check_url(KEY, text)?;
        let wrong = |why: &str| {
            LinkError::config(KEY, format!("`{text}` {why}; write amqp://HOST:PORT/VHOST, or amqps:// for TLS"))
        };
        if text.contains('@') {
            return Err(wrong("names a user: write `user` in the link's config instead"));
        }
        let uri: lapin::uri::AMQPUri = text.parse().map_err(|why: String| wrong(&format!("is no URL: {why}")))?;
        if text.contains('?') || uri.authority.host.is_empty() {
            return Err(wrong("has no host, or more than host, port and vhost"));
        }
        let tls = uri.scheme == lapin::uri::AMQPScheme::AMQPS;
        let access = Access::read(link)?;
        if !tls && !access.tls.is_empty() {
            return Err(wrong("is without TLS, and TLS files are given"));
        }
        Ok(Self { host: uri.authority.host, port: uri.authority.port, tls, vhost: uri.vhost, access })
    }

    /// The server as people see it. Nothing in it is secret.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let vhost = if self.vhost == "/" { String::new() } else { format!("/{}", self.vhost) };
        format!("{scheme}://{}:{}{vhost}", self.host, self.port)
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
        assert_eq!(read("amqp://mq"), Ok("amqp://mq:5672".into()));
        assert_eq!(read("amqps://mq:7000/shop"), Ok("amqps://mq:7000/shop".into()));
        for wrong in ["mq:5672", "http://mq", "amqp://mq?heartbeat=1", "amqp://me@mq"] {
            let why = read(wrong).unwrap_err();
            assert!(why.starts_with("config `url`") && why.contains("amqp://HOST:PORT/VHOST"), "{wrong}: {why}");
        }
        let why = read("amqp://me:s3cret@mq").unwrap_err();
        assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
    }
}
