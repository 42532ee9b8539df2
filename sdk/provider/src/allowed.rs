//! `allowed_subjects`: what a link lets its component publish to, on brokers that would let it publish to anything.

use trellis_wire::{CallError, Config, pattern};

use crate::LinkError;

/// The patterns of a link; without any, all is allowed.
#[derive(Debug, Clone)]
pub struct Allowed(Option<Vec<String>>);

impl Allowed {
    /// Reads a comma list of patterns, in which `*` stands for one token between dots and a last `>` for all that follow.
    ///
    /// # Errors
    /// One of them is no pattern.
    pub fn read(config: &Config) -> Result<Self, LinkError> {
        const KEY: &str = "allowed_subjects";
        let Some(text) = config.get(KEY) else { return Ok(Self(None)) };
        let patterns = text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        let checked = patterns.map(|text| {
            pattern::check(text).map_err(|why| LinkError::config(KEY, why.to_string()))?;
            Ok(text.to_owned())
        });
        checked.collect::<Result<_, _>>().map(|patterns| Self(Some(patterns)))
    }

    /// Whether a component may publish to a subject.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, subject: &str) -> Result<(), CallError> {
        let covers = |allowed: &Vec<String>| allowed.iter().any(|allowed| pattern::covers(allowed, subject));
        if self.0.as_ref().is_none_or(covers) {
            return Ok(());
        }
        Err(CallError::Denied(format!("publishing to `{subject}`: it is outside `allowed_subjects` of the link")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_denied() {
        let read = |text: &str| Allowed::read(&Config::from_iter([("allowed_subjects", text)]));
        let allowed = read("shop.>, mail").unwrap();
        for (subject, may) in [("shop.new", true), ("mail", true), ("bank", false)] {
            assert_eq!(allowed.check(subject).is_ok(), may, "{subject}");
        }
        assert!(read("a..b").is_err());
        assert_eq!(read("").unwrap().check("anything"), Ok(()));
    }
}
