#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walhold_fuzz::entries::control(data));
