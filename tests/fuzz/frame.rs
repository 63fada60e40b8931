//! Feeds `veth_tests::fuzz::frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| veth_tests::fuzz::frame(bytes));
