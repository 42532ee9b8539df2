//! One run, with arguments and output.

use std::fmt::Display;
use std::io::Write as _;

/// Calls the author's function and says how it ended.
#[expect(clippy::result_unit_err, reason = "the bare `result` of wasi:cli/run")]
pub fn run<E: Display>(main: impl FnOnce(Vec<String>) -> Result<(), E>) -> Result<(), ()> {
    // The first argument is the program's name.
    let ended = main(std::env::args().skip(1).collect());
    // Text without a final line break would stay behind in the buffer.
    let flushed = std::io::stdout().flush();
    match ended {
        Ok(()) => flushed.map_err(|why| eprintln!("error: standard output broke off: {why}")),
        Err(why) => {
            eprintln!("error: {why}");
            Err(())
        }
    }
}
