#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| spillway_fuzz::promql::run(bytes));
