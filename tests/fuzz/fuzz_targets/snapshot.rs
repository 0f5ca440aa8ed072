#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tests::sim::mangle::snapshot(data));
