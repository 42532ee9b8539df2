//! The guide `deploy/nats/README.md`: its commands, run as they stand there, with both places on this machine. Then what
//! it says of a laptop without a network.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tempfile::TempDir;
use trellis_bus::testing::{NatsServer, program};

use crate::apps::{eventually, examples, free_address};
use crate::client::get;

/// A command block of the guide.
struct Block {
    /// Where it is run.
    places: Vec<String>,
    /// Whether it goes on until it is ended.
    terminal: bool,
    script: String,
    /// What it is said to print.
    prints: Option<String>,
}

/// Reads the blocks of a guide: ```` ```sh PLACE... [terminal] ````, each maybe followed by a ```` ```text ````.
fn blocks(guide: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut pieces = guide.split("```").skip(1);
    while let (Some(code), _) = (pieces.next(), pieces.next()) {
        let (info, body) = code.split_once('\n').unwrap();
        match info.split(' ').collect::<Vec<_>>()[..] {
            ["sh", ref words @ ..] => blocks.push(Block {
                places: words.iter().filter(|word| **word != "terminal").map(|word| (*word).to_owned()).collect(),
                terminal: words.contains(&"terminal"),
                script: body.to_owned(),
                prints: None,
            }),
            _ => blocks.last_mut().unwrap().prints = Some(body.to_owned()),
        }
    }
    blocks
}

/// A machine of the guide: a folder, and addresses that nobody else here uses.
struct Place {
    folder: PathBuf,
    admin: SocketAddr,
    /// What stands in the guide and its files, and what takes its place here.
    instead: Vec<(&'static str, String)>,
    /// What runs in its terminals, by the block that started it.
    terminals: Vec<(String, Child)>,
}

impl Place {
    /// Copies files of the guide.
    fn copy(&self, from: &Path, files: &[&str]) {
        for file in files {
            let to = self.folder.join(file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from.join(file), &to).unwrap();
            if !file.starts_with("tls/") {
                let text = self.here(&std::fs::read_to_string(&to).unwrap());
                std::fs::write(&to, text).unwrap();
            }
        }
    }

    fn here(&self, text: &str) -> String {
        self.instead.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        let path = format!("{}:{}", self.folder.join("../bin").display(), std::env::var("PATH").unwrap());
        command.args(["-euc", &self.here(script)]).current_dir(&self.folder).env("PATH", path);
        command.env("XDG_DATA_HOME", &self.folder).env("TRELLIS_ADMIN", self.admin.to_string());
        command
    }

    fn open_terminal(&mut self, script: &str) {
        // The last line is what stays: as the shell itself, so that it can be ended.
        let script = script.trim_end().replace("\\\n", "");
        let at = script.rfind('\n').map_or(0, |end| end + 1);
        let script = format!("{}exec {}", &script[..at], &script[at..]);
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("terminal.log")).unwrap();
        let child = self.shell(&script).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.terminals.push((script, child.unwrap()));
    }

    /// Ends what a terminal runs, as a power cut would. It can be opened again with what is returned.
    fn end(&mut self, what: &str) -> String {
        let at = self.terminals.iter().position(|(script, _)| script.contains(what)).unwrap();
        let (script, mut child) = self.terminals.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
        script.replace("exec ", "")
    }

    fn run(&self, script: &str) -> Output {
        self.shell(script).output().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("terminal.log")).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (_, child) in &mut self.terminals {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("the terminals of {}:\n{}", self.folder.display(), self.log());
        }
    }
}

/// The cloud and the laptop, before anything is typed.
fn places(root: &TempDir) -> (Place, Place) {
    let bin = root.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_trellis"), bin.join("trellis")).unwrap();
    symlink(program(), bin.join("nats-server")).unwrap();
    let [hub, leaves, leaf] = [(); 3].map(|()| free_address().port().to_string());
    let place = |name: &str, instead| {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        Place { folder, admin: free_address(), instead, terminals: Vec::new() }
    };
    let cloud = vec![
        ("hub.example.com", "localhost".into()),
        ("0.0.0.0", "127.0.0.1".into()),
        (":4222", format!(":{hub}")),
        (":7422", format!(":{leaves}")),
        ("127.0.0.1:8080", free_address().to_string()),
        ("../../examples/build", examples().join("build").display().to_string()),
    ];
    let mut laptop = cloud.clone();
    laptop[2].1 = format!(":{leaf}");
    (place("cloud", cloud), place("laptop", laptop))
}

#[test]
fn the_guide_does_what_it_says_and_a_laptop_serves_without_a_network() {
    let root = tempfile::tempdir().unwrap();
    let (mut cloud, mut laptop) = places(&root);
    let source = examples().join("../deploy/nats");
    cloud.copy(&source, &["hub.conf", "accounts.conf", "laptop.yaml"]);
    std::fs::copy(source.join("tls.sh"), cloud.folder.join("tls.sh")).unwrap();
    for block in blocks(&std::fs::read_to_string(source.join("README.md")).unwrap()) {
        for place in &block.places {
            if place == "laptop" && laptop.terminals.is_empty() {
                laptop.copy(&cloud.folder, &["tls/ca.pem", "passwords.env", "join-token"]);
                laptop.copy(&source, &["leaf.conf"]);
            }
            let place = if place == "laptop" { &mut laptop } else { &mut cloud };
            if block.terminal {
                place.open_terminal(&block.script);
                continue;
            }
            let printed = eventually(&format!("this works:\n{}", block.script), || {
                let output = place.run(&block.script);
                eprint!("{}", String::from_utf8_lossy(&output.stderr));
                output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
            });
            assert!(printed.contains(block.prints.as_deref().unwrap_or_default()), "{printed}");
        }
    }
    without_a_network(&mut cloud, &mut laptop);
}

/// A client of one of the accounts, and what the server says against what it does.
struct Client {
    client: async_nats::Client,
    refused: mpsc::Receiver<String>,
}

async fn connected(nats: &NatsServer, user: &str, password: &str) -> Result<Client, async_nats::ConnectError> {
    let (says, refused) = mpsc::channel();
    let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
    let options = options.event_callback(move |event| {
        // Nobody may listen any more.
        let _ = says.send(event.to_string());
        std::future::ready(())
    });
    Ok(Client { client: options.connect(&nats.url).await?, refused })
}

impl Client {
    async fn publish(&self, subject: &'static str) {
        self.client.publish(subject, "hello".into()).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Whether the server refuses what was done, naming this subject.
    fn is_denied(&self, subject: &str) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        while let Ok(said) = self.refused.recv_timeout(until.saturating_duration_since(Instant::now())) {
            // The server quotes the subject, and the client may write all in small letters.
            let said = said.to_lowercase();
            if said.contains("permissions violation") && said.contains(subject) {
                return true;
            }
        }
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_accounts_keep_a_lattice_to_itself() {
    const OURS: &str = "trellis.v1.home.any";
    const THEIRS: &str = "trellis.v1.away.any";
    let home = std::fs::read_to_string(examples().join("../deploy/nats/accounts.conf")).unwrap();
    // A second account, as the guide says, of whoever may do anything in it.
    let away = "AWAY { users: [ { user: away, password: three } ] }\n";
    let at = home.rfind('}').unwrap();
    let conf = format!("NODE_PASSWORD: one\nLEAF_PASSWORD: two\n{}{away}{}", &home[..at], &home[at..]);
    let file = tempfile::Builder::new().suffix(".conf").tempfile().unwrap();
    std::fs::write(file.path(), conf).unwrap();
    let nats = NatsServer::start_with(true, &["--config", file.path().to_str().unwrap()]);

    let stranger = connected(&nats, "away", "three").await.unwrap();
    let mut overheard = stranger.client.subscribe(">").await.unwrap();
    stranger.client.flush().await.unwrap();
    for (user, password) in [("node", "one"), ("leaf", "two")] {
        let ours = connected(&nats, user, password).await.unwrap();
        let mut heard = ours.client.subscribe("trellis.v1.home.>").await.unwrap();
        ours.publish(OURS).await;
        let message = tokio::time::timeout(Duration::from_secs(20), heard.next()).await.unwrap().unwrap();
        assert_eq!(&*message.subject, OURS);
        ours.publish(THEIRS).await;
        assert!(ours.is_denied(THEIRS), "{user} publishes for another lattice");
        let _theirs = ours.client.subscribe("trellis.v1.away.>").await.unwrap();
        ours.client.flush().await.unwrap();
        assert!(ours.is_denied("trellis.v1.away.>"), "{user} listens to another lattice");
        let refused = connected(&nats, user, "wrong").await;
        assert!(refused.is_err_and(|why| why.to_string().contains("authorization violation")), "{user}");
    }
    // Its own is all that it hears: what came before would be heard before.
    stranger.publish("own").await;
    let message = tokio::time::timeout(Duration::from_secs(20), overheard.next()).await.unwrap().unwrap();
    assert_eq!(&*message.subject, "own");
}

/// The hub is gone, which to the laptop is a network that is.
fn without_a_network(cloud: &mut Place, laptop: &mut Place) {
    let serves: SocketAddr = laptop.here("127.0.0.1:8080").parse().unwrap();
    let hub = cloud.end("nats-server");
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        assert_eq!(get(serves, "/").unwrap().ok(), "hello world\n");
        thread::sleep(Duration::from_millis(100));
    }
    let leaf = laptop.end("nats-server");
    let node = laptop.end("trellis up");
    let began = Instant::now();
    laptop.open_terminal(&node);
    eventually("it serves again", || get(serves, "/").ok().filter(|response| response.status == 200));
    println!("switched off and on without a network: it served after {:?}", began.elapsed());

    laptop.open_terminal(&leaf);
    cloud.open_terminal(&hub);
    eventually("both are there for each other", || {
        let both = |place: &Place| {
            let printed = place.run("trellis nodes").stdout;
            String::from_utf8(printed).unwrap().matches(" ready ").count() == 2
        };
        (both(cloud) && both(laptop)).then_some(())
    });
    let next = cloud.run("sed -i 's/version: v1/version: v2/' laptop.yaml && trellis deploy --wait 2m laptop.yaml");
    assert!(next.status.success(), "{next:?}");
    let status = String::from_utf8(laptop.run("trellis status laptop").stdout).unwrap();
    assert!(status.starts_with("laptop v2 is ready"), "{status}");
    assert_eq!(get(serves, "/").unwrap().ok(), "hello world\n");
}
