//! Answers calls of other components with the next number: the least that a call can wake, for the benches of the host.

wit_bindgen::generate!({ path: "wit", world: "ping" });

use exports::test::calls::pinging::Guest;

struct Ping;

impl Guest for Ping {
    fn ping(number: u32) -> u32 {
        number.wrapping_add(1)
    }
}

export!(Ping);
