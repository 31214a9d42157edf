//! Dialects: each is four translations (parse, chunk, whole, refusal) and its routes. They do not know each other.

mod openai;
mod tgi;

use std::sync::Arc;

use axum::Router;

use crate::server::Server;

/// Routes of all dialects. A path that none has is answered in the words of the one whose prefix it carries.
pub(crate) fn routes() -> Router<Arc<Server>> {
    tgi::routes().nest("/v1", openai::routes())
}
