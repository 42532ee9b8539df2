//! What a link's configuration says of the server. `URL` is the key of wasmCloud's Redis provider; `url` is ours.

use trellis_provider::{Access, LinkError, check_url};
use trellis_wire::Link;

/// Where a link that names no server goes, as in wasmCloud.
const URL_DEFAULT: &str = "redis://127.0.0.1:6379";

/// All that makes a connection what it is: links with equal settings share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    pub(crate) database: i64,
    pub(crate) access: Access,
}

impl Settings {
    pub(crate) fn read(link: &Link) -> Result<Self, LinkError> {
        let named = ["url", "URL"].into_iter().find_map(|key| Some((key, link.config.get(key)?)));
        let (key, text) = named.unwrap_or(("url", URL_DEFAULT));
        check_url(key, text)?;
        let wrong = |why: &str| {
            LinkError::config(key, format!("`{text}` {why}; write redis://HOST:PORT/DATABASE, or rediss:// for TLS"))
        };
        let url = redis::parse_redis_url(text).ok_or_else(|| wrong("is no URL of Redis"))?;
        let tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err(wrong("names a socket file, which is not supported")),
        };
        if !url.username().is_empty() {
            return Err(wrong("names a user: write `user` in the link's config instead"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("has more than host, port and database"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
        let database = match url.path().trim_matches('/') {
            "" => 0,
            number => number.parse().ok().filter(|n| *n >= 0).ok_or_else(|| wrong("has no number as its database"))?,
        };
        let access = Access::read(link)?;
        if !tls && !access.tls.is_empty() {
            return Err(wrong("is without TLS, and TLS files are given"));
        }
        Ok(Self { host: host.into(), port: url.port().unwrap_or(6379), tls, database, access })
    }

    /// The server as people see it. Nothing in it is secret.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let database = if self.database == 0 { String::new() } else { format!("/{}", self.database) };
        format!("{scheme}://{}:{}{database}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use trellis_provider::testing::lab::link;

    use super::*;

    fn settings(config: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(&link("messaging", config)).map_err(|why| why.to_string())
    }

    #[test]
    fn urls_are_read_or_refused_with_what_to_write() {
        let read = |key: &str, url: &str| settings(&[(key, url)]).map(|read| read.shown());
        assert_eq!(read("url", ""), Ok(URL_DEFAULT.into()));
        assert_eq!(read("URL", "redis://cache"), Ok("redis://cache:6379".into()));
        assert_eq!(read("url", "rediss://cache:7000/2"), Ok("rediss://cache:7000/2".into()));
        for wrong in ["cache:6379", "http://cache", "unix:///tmp/x", "redis://cache/two", "redis://cache?a=b"] {
            let why = read("url", wrong).unwrap_err();
            assert!(why.starts_with("config `url`") && why.contains("redis://HOST:PORT/DATABASE"), "{wrong}: {why}");
        }
        let why = read("URL", "redis://:s3cret@cache").unwrap_err();
        assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
    }

    #[test]
    fn tls_files_need_tls() {
        let why = settings(&[("url", "redis://cache"), ("tls_ca", "/ca.pem")]).unwrap_err();
        assert!(why.contains("is without TLS"), "{why}");
    }
}
