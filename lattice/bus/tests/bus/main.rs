//! The bus from outside: one contract for both ends, a server that comes and goes, a wire on which things go wrong.

mod contract;
mod server;
mod wire;
