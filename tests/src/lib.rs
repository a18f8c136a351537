//! End-to-end tests, demonstration, load generator and benchmarks.
