//! Nothing: the comparison is a test, `tests/wadm.rs`.
