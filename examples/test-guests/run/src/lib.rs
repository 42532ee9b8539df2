//! Repeats its arguments, a line each, for the tests of the host. `--error TEXT` prints TEXT to standard error and
//! fails, `--exit N` exits with a status, `--panic` traps, `--loop` never ends, `--env` prints the environment,
//! `--secret NAME` prints a secret from its end to its beginning.

trellis_component::run!(main);

fn main(arguments: Vec<String>) -> Result<(), String> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--error", text] => Err((*text).to_owned()),
        ["--exit", status] => std::process::exit(status.parse().map_err(|_| "--exit takes a number")?),
        ["--panic"] => panic!("as asked"),
        ["--loop"] => loop {
            std::hint::black_box(0);
        },
        ["--env"] => {
            std::env::vars().for_each(|(name, value)| println!("{name}={value}"));
            Ok(())
        }
        ["--secret", name] => {
            let secret = trellis_component::secrets::get(name).map_err(|why| why.to_string())?;
            println!("{}", secret.reveal().chars().rev().collect::<String>());
            Ok(())
        }
        lines => {
            lines.iter().for_each(|line| println!("{line}"));
            Ok(())
        }
    }
}
