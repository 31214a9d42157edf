//! A model's text side: its tokenizer, special tokens, chat template and defaults.

use crate::files::{DefaultSampling, ModelFiles, read_file};
use crate::grammar::Grammars;
use crate::template::ChatTemplate;
use crate::vocabulary::{Assembly, Vocabulary};
use crate::{TextError, bytes, gguf};
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;

/// Everything about text that a model directory holds. Cloning is cheap: clones share it.
#[derive(Clone)]
pub struct TextModel(Arc<Inner>);

struct Inner {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    eos_token_ids: Vec<u32>,
    fim: Option<FimTokens>,
    chat_template: Option<ChatTemplate>,
    default_sampling: DefaultSampling,
    grammars: Grammars,
}

/// Tokens of fill-in-the-middle prompts: `prefix` before, `suffix` after, `middle` generated next.
///
/// The prompt is `prefix`, text before the gap, `suffix`, text after it, `middle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FimTokens {
    /// Stands before the text before the gap.
    pub prefix: u32,
    /// Stands before the text after the gap.
    pub suffix: u32,
    /// Stands before the text of the gap, which is to be generated.
    pub middle: u32,
}

/// Names of prefix, suffix and middle tokens in use: StarCoder, Qwen and CodeGemma, SantaCoder, DeepSeek, Code Llama.
const FIM_NAMES: [[&str; 3]; 5] = [
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// One token of an encoded text, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedToken {
    /// Token id.
    pub id: u32,
    /// The slice of the text that the token covers; empty for an added special token.
    pub text: String,
    /// Where the slice starts, in characters.
    pub start: usize,
    /// Where it ends (exclusive), in characters.
    pub stop: usize,
}

impl TextModel {
    /// Reads `tokenizer.json`, which must be there, and what there is of `tokenizer_config.json`, `special_tokens_map.json`, `config.json`,
    /// `generation_config.json`, `chat_template.jinja` and `chat_template.json`; or `tokenizer.gguf.json`, which is the metadata of a GGUF file as one JSON
    /// object: its keys that begin with `tokenizer.`.
    ///
    /// `read` gets a file name and returns its bytes, or `None` if there is no such file.
    ///
    /// # Errors
    /// A file that is missing, unreadable, invalid or not supported, by name.
    pub fn from_files(read: &dyn Fn(&str) -> std::io::Result<Option<Vec<u8>>>) -> Result<Self, TextError> {
        let (file, json, files) = match (read_file(read, "tokenizer.json")?, read_file(read, gguf::FILE)?) {
            (Some(json), _) => ("tokenizer.json", json, ModelFiles::read(read)?),
            (None, Some(metadata)) => {
                let gguf::Files { tokenizer, tokenizer_config, generation_config } = gguf::files(&metadata)?;
                (gguf::FILE, tokenizer, ModelFiles::with(read, tokenizer_config, generation_config)?)
            }
            (None, None) => {
                return Err(TextError::Missing {
                    file: "tokenizer.json",
                    hint: "a model needs a tokenizer in this format, which transformers writes for every fast tokenizer",
                });
            }
        };
        let invalid = |reason| TextError::Invalid { file: file.to_owned(), reason };
        // The library panics on some malformed files.
        let mut tokenizer = catch_unwind(|| Tokenizer::from_bytes(&json))
            .map_err(|_| invalid("the tokenizers library cannot make sense of it".to_owned()))?
            .map_err(|error| invalid(error.to_string()))?;
        // Some files carry the settings of a training run, which would silently cut or pad prompts.
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);

        let vocabulary = Vocabulary::new(&tokenizer, files.model_vocab_size()?)?;
        let mut eos_token_ids = files.eos_token_ids()?;
        eos_token_ids.extend(files.special_token("eos_token").and_then(|token| tokenizer.token_to_id(token)));
        let mut seen = std::collections::HashSet::new();
        eos_token_ids.retain(|&id| seen.insert(id));

        let fim = FIM_NAMES.iter().find_map(|names| {
            let [prefix, suffix, middle] = names.map(|name| tokenizer.token_to_id(name));
            Some(FimTokens { prefix: prefix?, suffix: suffix?, middle: middle? })
        });
        let chat_template = ChatTemplate::from_files(&files);
        let default_sampling = files.default_sampling();
        let grammars = Grammars::default();
        let inner = Inner { tokenizer, vocabulary, eos_token_ids, fim, chat_template, default_sampling, grammars };
        Ok(Self(Arc::new(inner)))
    }

    /// As [`from_files`](Self::from_files), from a directory.
    pub fn from_dir(path: &Path) -> Result<Self, TextError> {
        Self::from_files(&|file| match std::fs::read(path.join(file)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// The built-in tokenizer: ids 0 to 255 are bytes, then `<|endoftext|>` (256, the end of text), `<|im_start|>`, `<|im_end|>`, `<|fim_prefix|>`,
    /// `<|fim_suffix|>` and `<|fim_middle|>`. Its chat template is ChatML.
    pub fn bytes() -> Self {
        Self::from_files(&bytes::read).expect("the built-in tokenizer is valid")
    }

    /// Token ids of `text`. Special tokens written in the text become their ids; with `add_special_tokens` the tokenizer adds its own (such as
    /// a beginning of text).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.0.tokenizer.encode_fast(text, add_special_tokens);
        Ok(encoding.map_err(|error| TextError::Encode(error.to_string()))?.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode), with each token's place in the text.
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<Vec<EncodedToken>, TextError> {
        let encoding = self.0.tokenizer.encode_char_offsets(text, add_special_tokens);
        let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
        let byte_offsets: Vec<usize> = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).collect();
        let token = |(&id, &(start, stop)): (&u32, &(usize, usize))| {
            let bytes = byte_offsets.get(start).zip(byte_offsets.get(stop));
            let slice = bytes.and_then(|(&start, &stop)| text.get(start..stop)).unwrap_or_default();
            EncodedToken { id, text: slice.to_owned(), start, stop }
        };
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(token).collect())
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TextError::UnknownToken`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        let mut text = String::new();
        let mut assembly = Assembly::new(self.vocabulary());
        for &id in ids {
            if !(skip_special_tokens && self.is_special(id)) {
                assembly.add(self.vocabulary(), id, &mut text)?;
            }
        }
        assembly.finish(self.vocabulary(), &mut text);
        Ok(text)
    }

    /// The text of one token alone, as in the middle of a text; U+FFFD for part of a character, empty for an unknown id.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.vocabulary().bytes(id).unwrap_or_default()).into_owned()
    }

    /// The exact bytes that a token adds in the middle of a text; empty for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.vocabulary().bytes(id).unwrap_or_default().to_vec()
    }

    /// Whether a token is a special one, which `skip_special_tokens` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary().is_special(id)
    }

    /// Number of known ids: all below it can be decoded. Covers the model's padding of its vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary().len()
    }

    /// Ids that end a text: those of `generation_config.json`, `config.json`, and the tokenizer's `eos_token`.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.0.eos_token_ids
    }

    /// The tokens of fill-in-the-middle prompts, if the model has them.
    pub fn fim(&self) -> Option<&FimTokens> {
        self.0.fim.as_ref()
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.0.chat_template.as_ref()
    }

    /// How the model's makers recommend to sample.
    pub fn default_sampling(&self) -> DefaultSampling {
        self.0.default_sampling
    }

    pub(crate) fn grammars(&self) -> &Grammars {
        &self.0.grammars
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }
}

impl std::fmt::Debug for TextModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextModel").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
