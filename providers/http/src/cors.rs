//! Cross-origin rules of a link, by the Fetch standard. They hold only where a `cors_*` key is set; a guest that sets
//! the headers itself is left alone.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use trellis_provider::LinkError;
use trellis_wire::{Body, Config};

/// What a browser is told when the link names no methods, headers or age of its own: wasmCloud's defaults.
const DEFAULT_METHODS: &str = "GET,POST,PUT,DELETE,HEAD,OPTIONS";
const DEFAULT_HEADERS: &str = "accept,accept-language,content-type,content-language";
const DEFAULT_MAX_AGE_SECS: u64 = 300;

/// The cross-origin rules of one link.
#[derive(Debug, Clone)]
pub(crate) struct Cors {
    /// Empty: any.
    origins: Vec<String>,
    methods: HeaderValue,
    headers: HeaderValue,
    exposed: Option<HeaderValue>,
    max_age: HeaderValue,
}

impl Cors {
    /// Parses the `cors_*` keys; `None` where there is none.
    pub(crate) fn parse(config: &Config) -> Result<Option<Self>, LinkError> {
        if !config.iter().any(|(key, _)| key.starts_with("cors_") && config.get(key).is_some()) {
            return Ok(None);
        }
        let mut origins =
            list(config, "cors_allowed_origins", r#"["https://example.com"]"#, origin)?.unwrap_or_default();
        if origins.iter().any(|origin| origin == "*") {
            origins.clear();
        }
        let methods = list(config, "cors_allowed_methods", r#"["GET", "POST"]"#, method)?;
        let headers = list(config, "cors_allowed_headers", r#"["content-type"]"#, header_name)?;
        let exposed = list(config, "cors_exposed_headers", r#"["x-request-id"]"#, header_name)?;
        Ok(Some(Self {
            origins,
            methods: methods.map_or(HeaderValue::from_static(DEFAULT_METHODS), joined),
            headers: headers.map_or(HeaderValue::from_static(DEFAULT_HEADERS), joined),
            exposed: exposed.map(joined),
            max_age: max_age(config)?.into(),
        }))
    }

    /// The answer to a preflight request; `None` if this is none, and the component is asked.
    pub(crate) fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let asks = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ORIGIN)
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !asks {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.allowed(request.headers().get(header::ORIGIN)).is_some() {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone());
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        Some(response)
    }

    /// Adds to a response what the page at `origin` may see of it.
    pub(crate) fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        if !self.origins.is_empty() {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        let Some(allowed) = self.allowed(origin) else { return };
        headers.entry(header::ACCESS_CONTROL_ALLOW_ORIGIN).or_insert(allowed);
        if let Some(exposed) = &self.exposed {
            headers.entry(header::ACCESS_CONTROL_EXPOSE_HEADERS).or_insert_with(|| exposed.clone());
        }
    }

    fn allowed(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        let origin = origin?;
        if self.origins.is_empty() {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(origin.as_bytes())).then(|| origin.clone())
    }
}

/// Reads a list, written as in JSON (wasmCloud's way) or with commas only. No item can itself hold a comma.
fn list(
    config: &Config,
    key: &str,
    example: &str,
    check: fn(&str) -> Option<String>,
) -> Result<Option<Vec<String>>, LinkError> {
    let Some(text) = config.get(key) else { return Ok(None) };
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let items = inner.split(',').map(|item| item.trim().trim_matches('"')).filter(|item| !item.is_empty());
    let wrong = |item: &str| {
        LinkError::config(key, format!("`{item}` does not belong there; write a list such as `{example}`"))
    };
    items.map(|item| check(item).ok_or_else(|| wrong(item))).collect::<Result<Vec<_>, _>>().map(Some)
}

/// `*`, or a scheme and a host without a path, as a browser sends it.
fn origin(text: &str) -> Option<String> {
    if text == "*" {
        return Some(text.into());
    }
    let uri: Uri = text.parse().ok()?;
    let is_origin = matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/" && uri.query().is_none();
    is_origin.then(|| text.trim_end_matches('/').to_owned())
}

fn method(text: &str) -> Option<String> {
    text.parse::<Method>().is_ok().then(|| text.to_owned())
}

fn header_name(text: &str) -> Option<String> {
    text.parse::<HeaderName>().is_ok().then(|| text.to_owned())
}

fn joined(items: Vec<String>) -> HeaderValue {
    let text = items.iter().enumerate().fold(String::new(), |mut text, (nth, item)| {
        let comma = if nth == 0 { "" } else { "," };
        write!(text, "{comma}{item}").expect("a String takes what is written to it");
        text
    });
    HeaderValue::from_str(&text).expect("methods and header names are visible ASCII")
}

fn max_age(config: &Config) -> Result<u64, LinkError> {
    let Some(text) = config.get("cors_max_age_secs") else { return Ok(DEFAULT_MAX_AGE_SECS) };
    let wrong = |_| LinkError::config("cors_max_age_secs", format!("`{text}` is no number of seconds; write `300`"));
    text.parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors<const N: usize>(pairs: [(&str, &str); N]) -> Option<Cors> {
        Cors::parse(&Config::from_iter(pairs)).unwrap()
    }

    fn marked(cors: &Cors, origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        cors.mark(Some(&HeaderValue::from_static(origin)), &mut headers);
        headers
    }

    #[test]
    fn without_a_key_there_are_no_rules() {
        assert!(cors([("address", "x")]).is_none());
        assert!(cors([("cors_allowed_origins", " ")]).is_none());
    }

    #[test]
    fn only_the_named_origins_are_let_in() {
        let cors = cors([("cors_allowed_origins", r#"["https://a.example/", "http://localhost:3000"]"#)]).unwrap();
        let a = marked(&cors, "https://a.example");
        assert_eq!(a[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
        assert_eq!(a[header::VARY], "origin");
        let b = marked(&cors, "https://b.example");
        assert!(!b.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[test]
    fn a_star_or_no_origins_lets_everyone_in() {
        for cors in [cors([("cors_allowed_origins", "*")]), cors([("cors_max_age_secs", "5")])] {
            assert_eq!(marked(&cors.unwrap(), "https://b.example")[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        }
    }

    #[test]
    fn a_guests_own_header_is_left_alone() {
        let cors = cors([("cors_allowed_origins", "*")]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://own"));
        cors.mark(Some(&HeaderValue::from_static("https://x")), &mut headers);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://own");
    }

    #[test]
    fn errors_name_the_key() {
        let wrong = [
            ("cors_allowed_origins", "example.com", "https://example.com"),
            ("cors_allowed_origins", "https://a/b", "https://example.com"),
            ("cors_allowed_methods", "GET, P ST", "\"POST\""),
            ("cors_exposed_headers", "[\"a b\"]", "x-request-id"),
            ("cors_max_age_secs", "1h", "`300`"),
        ];
        for (key, value, example) in wrong {
            let error = Cors::parse(&Config::from_iter([(key, value)])).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")) && error.contains(example), "{error}");
        }
    }
}
