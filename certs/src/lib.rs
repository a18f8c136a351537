//! The public-key infrastructure of a Cloudlink fleet, without I/O.
