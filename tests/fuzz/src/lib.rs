//! What the fuzz targets do with their bytes. Each module is one target: `run` feeds the bytes to the real parsers, and panics when what
//! comes out breaks a promise. An ordinary test runs the seeds below `seeds/`, too.

pub mod bitstream;
pub mod cell;
pub mod config;
pub mod env;
pub mod gpu;
pub mod holders;
pub mod isolation;
pub mod kubelet_api;
pub mod logs;
pub mod machine;
pub mod pods;
pub mod prices;
pub mod promql;
pub mod subpath;
pub mod sysfs;
pub mod trace;
pub mod tree;
