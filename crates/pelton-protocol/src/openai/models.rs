//! `/v1/models`.

use serde::{Deserialize, Serialize};

/// Answer of `/v1/models`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelList {
    /// `list`.
    #[serde(default)]
    pub object: String,
    /// The served models.
    pub data: Vec<ModelCard>,
}

/// One served model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelCard {
    /// The name to use in requests.
    pub id: String,
    /// `model`.
    #[serde(default)]
    pub object: String,
    /// Unix seconds.
    #[serde(default)]
    pub created: u64,
    /// Owner; some clients choose their provider by it.
    #[serde(default)]
    pub owned_by: String,
    /// Path or hub name of the weights.
    #[serde(default)]
    pub root: Option<String>,
    /// The base model of an adapter.
    #[serde(default)]
    pub parent: Option<String>,
    /// Limit of prompt and generated tokens together.
    #[serde(default)]
    pub max_model_len: Option<u32>,
    /// What may be done with the model.
    #[serde(default)]
    pub permission: Vec<ModelPermission>,
}

/// The permission entry of a card.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ModelPermission {
    /// `modelperm-` and a random suffix.
    pub id: String,
    /// `model_permission`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// Always false here.
    pub allow_create_engine: bool,
    /// Sampling is served.
    pub allow_sampling: bool,
    /// Log-probabilities are served.
    pub allow_logprobs: bool,
    /// Always false here.
    pub allow_search_indices: bool,
    /// The card may be read.
    pub allow_view: bool,
    /// Always false here.
    pub allow_fine_tuning: bool,
    /// `*`.
    pub organization: String,
    /// Always null.
    pub group: Option<String>,
    /// Always false here.
    pub is_blocking: bool,
}
