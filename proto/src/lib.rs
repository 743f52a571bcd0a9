//! Wire types, and nothing else: no behaviour lives here.
//!
//! The `.proto` files in `proto/` carry the wire's names and numbers in this project's own words. `src/gen/` is generated from them
//! and committed; `tests/regenerate.rs` fails when the two differ.

// Generated code follows the generator's style, not this project's lints.
macro_rules! generated {
    ($(#[$doc:meta])* $module:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
        pub mod $module {
            include!(concat!("gen/", $file));
        }
    };
}

generated! {
    /// Kubelet device plugin API (`v1beta1`): plugin and registration services.
    deviceplugin, "v1beta1.rs"
}
generated! {
    /// Kubelet pod resources API (`v1`).
    podresources, "v1.rs"
}
generated! {
    /// Container Runtime Interface (`runtime.v1`), the part that is called.
    cri, "runtime.v1.rs"
}
generated! {
    /// gRPC's health checking protocol (`grpc.health.v1`).
    health, "grpc.health.v1.rs"
}
