#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| runnel_fuzz::targets::fuzz_eap_peer(data));
