//! The demo model, embedded: `pelton serve` needs no file.

/// Files of `models/demo`, as a Hugging Face directory would hold them.
pub const FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../../../models/demo/config.json")),
    ("generation_config.json", include_bytes!("../../../models/demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../../../models/demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../../models/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/demo/tokenizer_config.json")),
];

/// What the demo model is called.
pub const NAME: &str = "pelton-demo";
