//! Runs the built `trellis` and waits for it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How one run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output, when the run was a success.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.stdout
    }

    /// Standard error, when the run ended with this code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:#?}");
        self.stderr
    }
}

/// The binary, without anything that the environment of the tests might tell it.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trellis"));
    for (variable, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
        command.env_remove(variable);
    }
    command
}

fn is_ours(variable: &str) -> bool {
    variable.starts_with("TRELLIS_") || variable.starts_with("OTEL_")
}

/// Runs `trellis ARGS`.
pub(crate) fn trellis(args: &[&str]) -> Ran {
    fed(args, b"")
}

/// Runs `trellis ARGS` with this on its standard input.
pub(crate) fn fed(args: &[&str], stdin: &[u8]) -> Ran {
    let mut command = command();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A run that fails before it reads has closed the pipe; how it failed is what the test looks at.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// An app of one component, whose image is `api.wasm` beside the manifest.
pub(crate) const ORDERS: &str = "\
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata:
  name: orders
  annotations:
    version: v1
spec:
  components:
    - name: api
      type: component
      properties:
        image: file://api.wasm
";

/// Writes [`ORDERS`] and its image into a folder.
pub(crate) fn orders(folder: &Path, image: &[u8]) -> PathBuf {
    let manifest = folder.join("app.yaml");
    std::fs::write(&manifest, ORDERS).unwrap();
    std::fs::write(folder.join("api.wasm"), image).unwrap();
    manifest
}
