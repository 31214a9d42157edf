//! The server over real sockets, with scripted models.

mod adapters;
mod bad_input;
mod clouds;
mod fields;
mod grammars;
mod lifecycle;
mod load;
mod openai;
mod overload;
mod support;
mod tgi;
mod tools;
