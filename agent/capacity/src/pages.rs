//! Results as pages for a browser: a neutral [`model`] of what a page shows, and [`mod@render`], which makes one HTML file of it that asks no network for anything.
//!
//! A page says the same with scripts off, on paper and to a screen reader: each plot has a table beside it, and the plots only draw what the tables say.

mod fragmentation;
pub mod history;
pub mod model;
pub mod optimize;
pub mod render;
pub mod report;
pub mod server;
pub mod showback;
pub mod simulate;
pub mod what_if;

#[cfg(test)]
mod tests;
