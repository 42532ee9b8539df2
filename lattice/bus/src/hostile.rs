//! What a broken or hostile peer would send: sound messages, cut, changed and lengthened. For tests of whatever decodes
//! what comes over a bus.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How often each message is changed.
const CHANGES: usize = 4_000;
/// How much more memory may be needed for all of it, other tests in this process included: far less than a length says.
const MORE_KIB_MAX: u64 = 256 * 1024;

/// Decodes a message that is sound, then with many changes, the same each time.
///
/// # Panics
/// The sound one is refused, the decoder panics, or it takes much memory for what a false length says.
#[track_caller]
pub fn change_and_decode<T, E>(whole: &[u8], decode: impl Fn(&[u8]) -> Result<T, E>) {
    assert!(decode(whole).is_ok(), "a sound message of {} bytes is refused", whole.len());
    let dice = &mut StdRng::seed_from_u64(whole.len() as u64);
    let before = peak_kib();
    (0..CHANGES).for_each(|_| drop(decode(&changed(whole, dice))));
    let more = peak_kib() - before;
    assert!(more < MORE_KIB_MAX, "{more} KiB more for changes of {} bytes", whole.len());
}

/// The bytes, cut, lengthened, or with some of them others, up to all but the version that stands first.
fn changed(whole: &[u8], dice: &mut StdRng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let at = dice.random_range(0..bytes.len());
    match dice.random_range(0..6) {
        0 => bytes.truncate(at),
        // A length of gigabytes where a small one stood.
        1 => drop(bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, dice.random_range(0..0x10)])),
        2 => bytes.extend((0..dice.random_range(1..20)).map(|_| dice.random::<u8>())),
        3 => {
            let length = dice.random_range(0..300);
            bytes.splice(1.., (0..length).map(|_| dice.random::<u8>()));
        }
        _ => {
            for _ in 0..dice.random_range(1..6) {
                let at = dice.random_range(0..bytes.len());
                bytes[at] = dice.random();
            }
        }
    }
    bytes
}

/// The most memory that this process ever had in use.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("these tests run on Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse().ok());
    peak.expect("Linux says how much memory a process had in use")
}
