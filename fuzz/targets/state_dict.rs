#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pelton_model::fuzzing::state_dict(bytes));
