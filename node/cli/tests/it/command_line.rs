//! What needs no node: help, suggestions, completions, and how wrong use is told.

use std::net::TcpListener;

use crate::trellis::{command, fed, trellis};

#[test]
fn without_a_command_it_shows_what_there_is() {
    let ran = trellis(&[]);
    let shown = ran.stdout + &ran.stderr;
    for word in ["up", "deploy", "validate", "inspect", "Examples:"] {
        assert!(shown.contains(word), "{word} is missing in:\n{shown}");
    }
}

#[test]
fn an_unknown_command_suggests_the_nearest() {
    let stderr = trellis(&["deplyo", "app.yaml"]).failed(2);
    assert!(stderr.contains("deploy"), "{stderr}");
}

#[test]
fn help_of_up_names_defaults_and_variables() {
    let stdout = trellis(&["up", "--help"]).ok();
    for word in ["TRELLIS_DATA_DIR", "127.0.0.1:7878", "default: 1000", "--wasi-p3", "TRELLIS_LOG", "node.yaml"] {
        assert!(stdout.contains(word), "{word} is missing in:\n{stdout}");
    }
}

#[test]
fn no_node_is_told_with_what_to_do() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let stderr = trellis(&["apps", "--admin", &url]).failed(1);
    let expected = format!(
        "error: no node answers at {url}: connection refused; start one with `trellis up` or name another with --admin\n"
    );
    assert_eq!(stderr, expected);
}

#[test]
fn the_environment_names_the_node_and_the_flag_wins() {
    let run = |args: &[&str]| {
        let output = command().env("TRELLIS_ADMIN", "127.0.0.1:1").args(args).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&["nodes"]).contains("no node answers at http://127.0.0.1:1:"));
    assert!(run(&["nodes", "--admin", "127.0.0.1:2"]).contains("no node answers at http://127.0.0.1:2:"));
}

#[test]
fn wrong_values_are_usage_and_name_the_option() {
    let cases: [(&[&str], &str); 6] = [
        (&["apps", "--admin-token", "a b"], "ASCII without blanks"),
        (&["deploy", "app.yaml", "--wait", "30"], "30s"),
        (&["status", "no spaces"], "app name"),
        (&["invoke", "orders"], "APP/COMPONENT"),
        (&["config", "put", "redis", "url"], "key=value"),
        (&["up", "--sandbox-memory", "lots"], "512MiB"),
    ];
    for (args, said) in cases {
        let stderr = trellis(args).failed(2);
        assert!(stderr.contains(said), "{args:?} said:\n{stderr}");
    }
}

#[test]
fn wrong_settings_of_up_are_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("node.yaml");
    std::fs::write(&config, "lattice: home\nsandbox-memry: 2GiB\n").unwrap();
    let stderr = trellis(&["up", "--config", config.to_str().unwrap()]).failed(2);
    assert!(stderr.contains("sandbox-memry") && stderr.contains("line 2"), "{stderr}");

    let stderr = trellis(&["up", "--config", "/nowhere/node.yaml"]).failed(2);
    assert!(stderr.contains("cannot read /nowhere/node.yaml"), "{stderr}");
    let data = dir.path().to_str().unwrap();
    let stderr = trellis(&["up", "--data-dir", data, "--nats-creds", "/x"]).failed(2);
    assert!(stderr.contains("no --nats says where it is"), "{stderr}");
    let stderr = trellis(&["up", "--data-dir", data, "--log", "a=b=c"]).failed(2);
    assert!(stderr.contains("no log filter"), "{stderr}");
}

#[test]
fn a_lattice_is_not_started_at_the_edge() {
    let dir = tempfile::tempdir().unwrap();
    let start = ["up", "--edge", "--bootstrap", "--admin", "127.0.0.1:0", "--data-dir", dir.path().to_str().unwrap()];
    let nats = ["--nats", "nats://127.0.0.1:1"];
    for args in [start.to_vec(), [&start[..], &nats].concat()] {
        let stderr = trellis(&args).failed(1);
        assert!(stderr.contains("--edge and --bootstrap contradict each other"), "{stderr}");
    }
}

#[test]
fn completions_know_the_commands() {
    let script = trellis(&["completions", "bash"]).ok();
    assert!(script.contains("_trellis()") && script.contains("undeploy"), "{script}");
}

#[test]
fn a_config_key_twice_is_refused_without_asking() {
    let stderr = trellis(&["config", "put", "redis", "url=a", "url=b", "--admin", "127.0.0.1:1"]).failed(2);
    assert!(stderr.contains("`url` is given twice"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    // `trellis completions bash | true`: the pipe is closed before anything is read.
    let mut child = command()
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn a_manifest_that_is_too_large_is_no_manifest() {
    let stderr = fed(&["validate", "-"], &vec![b'#'; (4 << 20) + 1]).failed(2);
    assert!(stderr.contains("standard input is no manifest"), "{stderr}");
}
