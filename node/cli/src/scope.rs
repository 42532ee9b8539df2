//! `APP` or `APP/COMPONENT`, as several commands take it.

use std::fmt;
use std::str::FromStr;

use trellis_wire::{AppName, ComponentName, IdError};

/// An app, or one component of it.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) app: AppName,
    component: Option<ComponentName>,
}

impl Scope {
    /// The component's name, where one is named.
    pub(crate) fn component(&self) -> Option<&str> {
        self.component.as_ref().map(ComponentName::as_str)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.component {
            Some(component) => write!(f, "{}/{component}", self.app),
            None => write!(f, "{}", self.app),
        }
    }
}

impl FromStr for Scope {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.split_once('/') {
            Some((app, component)) => Ok(Self { app: app.parse()?, component: Some(component.parse()?) }),
            None => Ok(Self { app: text.parse()?, component: None }),
        }
    }
}
