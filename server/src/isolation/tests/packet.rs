//! What passes.
