//! Checks that every backend must pass.
