//! MIG: which partitions a GPU has.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlDeviceAttributes_t, nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND, nvmlReturn_t,
};

use crate::{
    INVALID_ARGUMENT, MIG_HANDLES, NOT_SUPPORTED, folder, gpu, number, session, spent, whole_gpu, write,
    write_attribute,
};

/// No GPU has more MIG devices than this.
const MOST: c_uint = 7;

/// Whether MIG is enabled, and will be after a reset.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match whole_gpu(device).map(|gpu| folder::number::<c_uint>(&gpu, "mig-mode")) {
        Ok(Some(mode)) => {
            // SAFETY: the caller passes places for both.
            let wrote = unsafe { write(current, mode) };
            // SAFETY: as above.
            wrote.max(unsafe { write(pending, mode) })
        }
        Ok(None) => NOT_SUPPORTED,
        Err(error) => error,
    }
}

/// How many MIG devices the GPU could have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    count: *mut c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match whole_gpu(device) {
        // SAFETY: the caller passes a place for the count.
        Ok(gpu) => unsafe { write(count, if gpu.join("mig-mode").exists() { MOST } else { 0 }) },
        Err(error) => error,
    }
}

/// A MIG device's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    mig: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let gpu = match whole_gpu(device) {
        Ok(gpu) => gpu,
        Err(error) => return error,
    };
    if index >= MOST {
        return INVALID_ARGUMENT;
    }
    let Some(folder) = folder::migs(&gpu).into_iter().nth(index as usize) else { return NOT_FOUND };
    let mut session = session();
    let place = session.migs.iter().position(|known| *known == folder).unwrap_or_else(|| {
        session.migs.push(folder);
        session.migs.len() - 1
    });
    // SAFETY: the caller passes a place for the handle.
    unsafe { write(mig, (MIG_HANDLES + place) as nvmlDevice_t) }
}

/// Whether a handle is a MIG device's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(
    device: nvmlDevice_t,
    is_mig: *mut c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match gpu(device) {
        // SAFETY: the caller passes a place for the answer.
        Ok(_) => unsafe { write(is_mig, c_uint::from(device as usize >= MIG_HANDLES)) },
        Err(error) => error,
    }
}

/// The GPU of a MIG device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    mig: nvmlDevice_t,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let parent = match gpu(mig).map(|mig| folder::parent(&mig)) {
        Ok(Some(parent)) => parent,
        Ok(None) => return INVALID_ARGUMENT,
        Err(error) => return error,
    };
    let place = session().gpus.iter().position(|gpu| *gpu == parent);
    match place {
        // SAFETY: the caller passes a place for the handle.
        Some(place) => unsafe { write(device, (place + 1) as nvmlDevice_t) },
        None => INVALID_ARGUMENT,
    }
}

/// The number of a MIG device's GPU instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "gi", id) }
}

/// The number of a MIG device's compute instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: nvmlDevice_t,
    id: *mut c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "ci", id) }
}

/// What a MIG device has of its GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    attributes: *mut nvmlDeviceAttributes_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let mig = match gpu(device) {
        Ok(mig) if folder::parent(&mig).is_some() => mig,
        Ok(_) => return NOT_SUPPORTED,
        Err(error) => return error,
    };
    let Some(memory) = folder::number(&mig, "memory-total") else { return NOT_SUPPORTED };
    let count = |name: &str| folder::number(&mig, name).unwrap_or(0);
    let found = nvmlDeviceAttributes_t {
        multiprocessorCount: count("multiprocessors"),
        sharedCopyEngineCount: count("engines-copy"),
        sharedDecoderCount: count("engines-decoder"),
        sharedEncoderCount: count("engines-encoder"),
        sharedJpegCount: count("engines-jpeg"),
        sharedOfaCount: count("engines-ofa"),
        gpuInstanceSliceCount: count("slices-gi"),
        computeInstanceSliceCount: count("slices-ci"),
        memorySizeMB: memory,
    };
    // SAFETY: the caller passes a place for the structure.
    unsafe { write(attributes, found) }
}

/// How many MIG devices there are, for whoever asks by count.
pub(crate) fn count(gpu: &std::path::Path) -> c_uint {
    number(folder::migs(gpu).len())
}
