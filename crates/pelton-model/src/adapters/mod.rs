//! LoRA adapters as PEFT saves them: which linears of a decoder they add to, found and checked before anything is packed.
//!
//! The tensors are the truth: a module is adapted where a file has its `lora_A` and `lora_B`, whatever `target_modules` says.

mod config;

use std::collections::{BTreeMap, HashMap};

use pelton_backend::{AdapterId, AdapterMatrices, AdapterWeight, Backend, BackendError, DType};

use crate::config::ConfigError;
use crate::files::{FilesError, ModelFiles};
use crate::spec::{DecoderSpec, DecoderTensors, LayerTensors, Names, Stored, TensorSpec};
use crate::weights::{Checkpoint, CheckpointError, RandomWeights, Tensor, TensorSource};
use config::AdapterConfig;

/// Files of an adapter's weights, in the order they are looked for.
pub(crate) const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The description every adapter has.
pub(crate) const CONFIG: &str = config::FILE;

/// What PEFT puts before the names of a model's modules.
const WRAPPER: &str = "base_model.model.";

/// Where an adapter comes from. Its place in [`LoadOptions::adapters`](crate::LoadOptions) is its [`AdapterId`].
#[derive(Debug, Clone)]
pub enum AdapterSource {
    /// A folder with `adapter_config.json` and `adapter_model.safetensors`.
    Files {
        /// What to call it.
        name: String,
        /// Its files.
        files: ModelFiles,
    },
    /// Made up, for every linear: for measurements.
    Random {
        /// Of all its products.
        rank: usize,
    },
}

/// An adapter that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("adapter {name}: {problem}")]
pub struct AdapterError {
    /// Which.
    pub name: String,
    /// What is wrong with it.
    pub problem: Box<AdapterProblem>,
}

/// What is wrong with an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterProblem {
    /// Its files cannot be reached.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its configuration cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights are damaged.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// No file holds weights.
    #[error("{} is missing", WEIGHTS[0])]
    NoWeights,
    /// Tensors missing, left over, or of another shape or type than configuration and model say.
    #[error("it does not fit the model ({count} wrong): {problems}")]
    Mismatch {
        /// How many tensors are wrong.
        count: usize,
        /// The first of them, each with what is expected and what was found.
        problems: String,
    },
    /// More adapters than there are ids.
    #[error("it is number {number}, limit is {}", u16::MAX)]
    TooMany {
        /// Its place, counted from zero.
        number: usize,
    },
}

impl From<CheckpointError> for AdapterProblem {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Mismatch { count, problems } => Self::Mismatch { count, problems },
            other => Self::Checkpoint(other),
        }
    }
}

/// All adapters of a model, known to fit it.
#[derive(Default)]
pub(crate) struct Adapters {
    list: Vec<Adapter>,
}

struct Adapter {
    source: Box<dyn TensorSource>,
    /// Those of one linear by their columns.
    products: BTreeMap<Place, Product>,
}

/// A matrix of the model.
///
/// It is not told by name: names, and which of a linear's matrices are one, are those of the family's own checkpoints, which the loaded one need not share
/// (GGUF has its own). Columns of a linear are in one order in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    layer: usize,
    /// Which of the block's, as [`LayerTensors::linears_of_every_row`] has them.
    linear: usize,
    first_column: usize,
}

/// Ranks that a kernel takes at once, for the memory plan.
const FILLED_RANKS: u64 = 32;

/// Two matrices beside one of the model's.
struct Product {
    /// `[rank, in]`.
    down: TensorSpec,
    /// `[out, rank]`, rows in the model's order.
    up: TensorSpec,
    scale: f32,
}

impl Adapters {
    /// Reads the headers of `sources`. `family` is the model as its family declares it, whatever its files look like.
    pub(crate) fn open(sources: &[AdapterSource], family: &DecoderSpec) -> Result<Self, AdapterError> {
        if sources.is_empty() {
            return Ok(Self::default());
        }
        let tensors = family.tensors();
        let open = |(number, source): (usize, &AdapterSource)| {
            let (name, adapter) = match source {
                AdapterSource::Files { name, files } => (name.clone(), from_files(files, &family.names, &tensors)),
                AdapterSource::Random { rank } => (format!("number {number}"), Ok(random(number, *rank, &tensors))),
            };
            let adapter =
                if number < usize::from(u16::MAX) { adapter } else { Err(AdapterProblem::TooMany { number }) };
            adapter.map_err(|problem| AdapterError { name, problem: Box::new(problem) })
        };
        Ok(Self { list: sources.iter().enumerate().map(open).collect::<Result<_, _>>()? })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes of all of them at most, kept in `dtype`: backends fill ranks up to what their kernels take at once.
    pub(crate) fn bytes(&self, dtype: DType) -> u64 {
        let products = self.list.iter().flat_map(|adapter| adapter.products.values());
        let numbers = |product: &Product| {
            let rank = product.down.shape.first().map_or(1, |&rank| rank.max(1) as u64);
            let columns = (product.down.num_elements() + product.up.num_elements()) / rank;
            columns * rank.next_multiple_of(FILLED_RANKS)
        };
        products.map(numbers).sum::<u64>() * dtype.size_bytes() as u64
    }

    /// Packs what they add to a linear of `shape`, `[out, in]`, in `dtype`; `None` where that is nothing. `linear` as
    /// [`LayerTensors::linears_of_every_row`] counts them.
    pub(crate) fn pack<B: Backend>(
        &self,
        backend: &B,
        [layer, linear]: [usize; 2],
        shape: [usize; 2],
        dtype: DType,
    ) -> Result<Option<B::Adapters>, PackError> {
        let place = |first_column: usize| Place { layer, linear, first_column };
        let mut read = Vec::new();
        for (id, adapter) in self.list.iter().enumerate() {
            for (place, product) in adapter.products.range(place(0)..=place(usize::MAX)) {
                read.push(Read {
                    adapter: AdapterId(id as u16),
                    down: adapter.source.tensor(&product.down)?,
                    up: adapter.source.tensor(&product.up)?,
                    scale: product.scale,
                    first_column: place.first_column,
                });
            }
        }
        if read.is_empty() {
            return Ok(None);
        }
        let weights = read.iter().map(Read::weight).collect();
        let matrices = AdapterMatrices::new(shape, weights, dtype)?;
        Ok(Some(backend.pack_adapters(&matrices)?))
    }
}

/// A product whose matrices are in memory.
struct Read {
    adapter: AdapterId,
    down: Tensor,
    up: Tensor,
    scale: f32,
    first_column: usize,
}

impl Read {
    fn weight(&self) -> AdapterWeight<'_> {
        AdapterWeight {
            adapter: self.adapter,
            down: self.down.host(),
            up: self.up.host(),
            scale: self.scale,
            first_column: self.first_column,
        }
    }
}

/// Reading or packing failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Every matrix that adapters may add to.
fn places(tensors: &DecoderTensors) -> impl Iterator<Item = (Place, &TensorSpec)> {
    let linears = tensors.layers.iter().map(LayerTensors::linears_of_every_row).enumerate();
    let linears = linears.flat_map(|(layer, linears)| linears.enumerate().map(move |(index, it)| (layer, index, it)));
    linears.flat_map(|(layer, linear, tensors)| {
        tensors.parts.iter().scan(0, move |next_column, part| {
            let first_column = *next_column;
            *next_column += part.shape[0];
            Some((Place { layer, linear, first_column }, part))
        })
    })
}

fn from_files(files: &ModelFiles, names: &Names, tensors: &DecoderTensors) -> Result<Adapter, AdapterProblem> {
    let config = files.read(CONFIG)?.ok_or_else(|| ConfigError::NoFile { file: CONFIG.to_owned() })?;
    let config = AdapterConfig::parse(&config)?;
    let Some(checkpoint) = WEIGHTS.iter().find_map(|name| Checkpoint::open_file(files, name).transpose()) else {
        return Err(AdapterProblem::NoWeights);
    };
    let checkpoint = checkpoint?;

    // Matrices by what follows the prefix: an adapter may have been trained beside a model written with another one.
    let places: HashMap<&str, (Place, &TensorSpec)> = places(tensors)
        .filter_map(|(place, part)| {
            Some((part.name.strip_prefix(names.prefix)?.strip_suffix(".weight")?, (place, part)))
        })
        .collect();
    let place_of = |module: &str| {
        let prefixes = std::iter::once(names.prefix).chain(names.other_prefixes.iter().copied());
        prefixes.filter_map(|prefix| module.strip_prefix(prefix)).find_map(|rest| places.get(rest).copied())
    };

    let mut modules = BTreeMap::new();
    let (mut problems, mut refused) = (Vec::new(), Vec::new());
    for name in checkpoint.names() {
        let half = |ending: &str| name.strip_prefix(WRAPPER)?.strip_suffix(ending);
        let problem = match half(".lora_A.weight").or_else(|| half(".lora_B.weight")) {
            Some(module) => match place_of(module) {
                Some(place) => {
                    modules.insert(module, place);
                    continue;
                }
                None => "belongs to no linear of the model that can have adapters",
            },
            None => "is no matrix that is added to a linear",
        };
        problems.push(format!("{name} {problem}"));
        refused.push(name);
    }
    if modules.is_empty() && problems.is_empty() {
        problems.push("it has no tensors".to_owned());
    }
    let mut products = BTreeMap::new();
    for (module, (place, matrix)) in modules {
        let (rank, scale) = config.of(module);
        let tensor = |half: &str, shape: Vec<usize>, stored: Stored| TensorSpec {
            name: format!("{WRAPPER}{module}.{half}.weight"),
            shape,
            stored,
        };
        // PEFT keeps `B` as `[out, rank]` also where the model's own matrix lies transposed.
        let order = match &matrix.stored {
            Stored::Rows(_) => matrix.stored.clone(),
            Stored::AsIs | Stored::Transposed => Stored::AsIs,
        };
        let product = Product {
            down: tensor("lora_A", vec![rank, matrix.shape[1]], Stored::AsIs),
            up: tensor("lora_B", vec![matrix.shape[0], rank], order),
            scale,
        };
        // Of one module under two prefixes, one is left over, which is told.
        products.insert(place, product);
    }
    let wanted = products.values().flat_map(|product| [&product.down, &product.up]);
    checkpoint.check(wanted, |name| refused.contains(&name), problems)?;
    Ok(Adapter { source: Box::new(checkpoint), products })
}

fn random(number: usize, rank: usize, tensors: &DecoderTensors) -> Adapter {
    let product = |(place, part): (Place, &TensorSpec)| {
        let tensor = |half: &str, shape: Vec<usize>| TensorSpec {
            name: format!("{}.{half}.{number}", part.name),
            shape,
            stored: Stored::AsIs,
        };
        let (down, up) = (tensor("A", vec![rank, part.shape[1]]), tensor("B", vec![part.shape[0], rank]));
        (place, Product { down, up, scale: 1.0 })
    };
    let products = places(tensors).map(product).collect();
    Adapter { source: Box::new(RandomWeights::new(number as u64)), products }
}
