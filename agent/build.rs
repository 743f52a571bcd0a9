//! How the program is linked: with its relocations packed. They are read at every start and stay in memory, a megabyte of them otherwise. The
//! program needs glibc 2.36 for that.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
