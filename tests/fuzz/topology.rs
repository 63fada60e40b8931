//! Feeds `veth_tests::fuzz::topology`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| veth_tests::fuzz::topology(bytes));
