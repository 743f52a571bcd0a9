//! MIG's GPU instances and compute instances, and the profiles that they are made from: what the driver's own tools, and NVIDIA's
//! device plugin, find a MIG device's profile by. The numbers of the profiles are an A100's.

use std::{
    ffi::{c_char, c_uint},
    path::PathBuf,
};

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstancePlacement_t,
    nvmlComputeInstanceProfileInfo_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_t,
    nvmlGpuInstancePlacement_t, nvmlGpuInstanceProfileInfo_t,
    nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND, nvmlReturn_t,
};

use crate::{INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, folder, number, whole_gpu, write};

/// What a GPU instance can be made of.
struct Kind {
    /// `NVML_GPU_INSTANCE_PROFILE_…`
    index: c_uint,
    /// The driver's number for it.
    id: c_uint,
    slices: c_uint,
    /// Of the GPU's memory.
    eighths: u64,
    /// How its name ends.
    attribute: &'static str,
}

const KINDS: [Kind; 7] = [
    Kind { index: 0, id: 19, slices: 1, eighths: 1, attribute: "" },
    Kind { index: 1, id: 14, slices: 2, eighths: 2, attribute: "" },
    Kind { index: 2, id: 9, slices: 3, eighths: 4, attribute: "" },
    Kind { index: 3, id: 5, slices: 4, eighths: 4, attribute: "" },
    Kind { index: 4, id: 0, slices: 7, eighths: 8, attribute: "" },
    Kind { index: 7, id: 20, slices: 1, eighths: 1, attribute: "+me" },
    Kind { index: 9, id: 15, slices: 1, eighths: 2, attribute: "" },
];

/// `NVML_COMPUTE_INSTANCE_PROFILE_…` by slices; the driver's numbers are the same.
const COMPUTE: [(c_uint, c_uint); 5] = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 7)];

/// Handles say what they mean: which GPU, which of its GPU instances, and which compute instance in there.
fn handle(gpu: usize, gi: c_uint, ci: c_uint) -> usize {
    (gpu + 1) << 24 | (gi as usize) << 12 | (ci as usize) << 1 | 1
}

struct Place {
    gpu: PathBuf,
    device: nvmlDevice_t,
    gi: c_uint,
    ci: c_uint,
}

fn place(handle: usize) -> Result<Place, nvmlReturn_t> {
    let device = handle >> 24;
    let gpu = whole_gpu(device as nvmlDevice_t)?;
    let part = |shift: usize, mask: usize| number(handle >> shift & mask);
    Ok(Place { gpu, device: device as nvmlDevice_t, gi: part(12, 0xfff), ci: part(1, 0x7ff) })
}

/// The profiles' names of a GPU's MIG devices, by instances.
fn profiles(gpu: &std::path::Path) -> Vec<(c_uint, c_uint, String)> {
    let profile = |mig: PathBuf| {
        Some((folder::number(&mig, "gi")?, folder::number(&mig, "ci")?, folder::text(&mig, "profile")?))
    };
    folder::migs(gpu).into_iter().filter_map(profile).collect()
}

/// Slices of a name such as `1c.3g.20gb+me`: compute, GPU.
fn slices(name: &str) -> Option<(c_uint, c_uint)> {
    let fields = || name.split(['.', '+', '-']);
    let gpu = fields().find_map(|field| field.strip_suffix('g')?.parse().ok())?;
    let compute = fields().find_map(|field| field.strip_suffix('c')?.parse().ok()).unwrap_or(gpu);
    Some((compute, gpu))
}

fn kind(gpu: &std::path::Path, name: &str) -> Option<&'static Kind> {
    let (_, gpu_slices) = slices(name)?;
    let attribute = name.find(['+', '-']).map_or("", |at| &name[at..]);
    let gigabytes: u64 =
        name.split(['.', '+', '-']).find_map(|field| field.strip_suffix("gb")?.parse().ok())?;
    let total: u64 = folder::number(gpu, "memory-total")?;
    let eighths = (gigabytes * 1024 * 8).div_ceil(total);
    KINDS
        .iter()
        .find(|kind| kind.slices == gpu_slices && kind.attribute == attribute && kind.eighths == eighths)
}

fn kind_of(place: &Place) -> Result<&'static Kind, nvmlReturn_t> {
    let profiles = profiles(&place.gpu);
    let (.., name) = profiles.iter().find(|(gi, ..)| *gi == place.gi).ok_or(NOT_FOUND)?;
    kind(&place.gpu, name).ok_or(NOT_FOUND)
}

/// A GPU instance's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceById(
    device: nvmlDevice_t,
    id: c_uint,
    instance: *mut nvmlGpuInstance_t,
) -> nvmlReturn_t {
    match whole_gpu(device) {
        // SAFETY: the caller passes a place for the handle.
        Ok(gpu) if profiles(&gpu).iter().any(|(gi, ..)| *gi == id) => unsafe {
            write(instance, handle(device as usize - 1, id, 0) as nvmlGpuInstance_t)
        },
        Ok(_) => NOT_FOUND,
        Err(error) => error,
    }
}

/// A compute instance's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceById(
    instance: nvmlGpuInstance_t,
    id: c_uint,
    compute: *mut nvmlComputeInstance_t,
) -> nvmlReturn_t {
    match place(instance as usize) {
        // SAFETY: the caller passes a place for the handle.
        Ok(at) if profiles(&at.gpu).iter().any(|(gi, ci, _)| (*gi, *ci) == (at.gi, id)) => unsafe {
            write(compute, handle(at.device as usize - 1, at.gi, id) as nvmlComputeInstance_t)
        },
        Ok(_) => NOT_FOUND,
        Err(error) => error,
    }
}

/// What a GPU instance is. Where it lies on the GPU the stand-in doesn't know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetInfo(
    instance: nvmlGpuInstance_t,
    info: *mut nvmlGpuInstanceInfo_t,
) -> nvmlReturn_t {
    match place(instance as usize).and_then(|at| Ok((kind_of(&at)?, at))) {
        Ok((kind, at)) => {
            let placement = nvmlGpuInstancePlacement_t { start: 0, size: kind.slices };
            let found = nvmlGpuInstanceInfo_t { device: at.device, id: at.gi, profileId: kind.id, placement };
            // SAFETY: the caller passes a place for the structure.
            unsafe { write(info, found) }
        }
        Err(error) => error,
    }
}

/// What a compute instance is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlComputeInstanceGetInfo_v2(
    compute: nvmlComputeInstance_t,
    info: *mut nvmlComputeInstanceInfo_t,
) -> nvmlReturn_t {
    let at = match place(compute as usize) {
        Ok(at) => at,
        Err(error) => return error,
    };
    let profiles = profiles(&at.gpu);
    let name = profiles.iter().find(|(gi, ci, _)| (*gi, *ci) == (at.gi, at.ci)).map(|(.., name)| name);
    let Some((slices, _)) = name.and_then(|name| slices(name)) else { return NOT_FOUND };
    let Some((id, _)) = COMPUTE.iter().find(|(_, of)| *of == slices) else { return NOT_FOUND };
    let found = nvmlComputeInstanceInfo_t {
        device: at.device,
        gpuInstance: handle(at.device as usize - 1, at.gi, 0) as nvmlGpuInstance_t,
        id: at.ci,
        profileId: *id,
        placement: nvmlComputeInstancePlacement_t { start: 0, size: slices },
    };
    // SAFETY: the caller passes a place for the structure.
    unsafe { write(info, found) }
}

/// What a GPU instance of a profile has, whether there is one or not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut nvmlGpuInstanceProfileInfo_t,
) -> nvmlReturn_t {
    let gpu = match whole_gpu(device) {
        Ok(gpu) if gpu.join("mig-mode").exists() => gpu,
        Ok(_) => return NOT_SUPPORTED,
        Err(error) => return error,
    };
    let Some(kind) = KINDS.iter().find(|kind| kind.index == profile) else { return NOT_SUPPORTED };
    let total: u64 = folder::number(&gpu, "memory-total").unwrap_or(0);
    let found = nvmlGpuInstanceProfileInfo_t {
        id: kind.id,
        isP2pSupported: 0,
        sliceCount: kind.slices,
        instanceCount: 7 / kind.slices,
        multiprocessorCount: 14 * kind.slices,
        copyEngineCount: kind.slices,
        decoderCount: 0,
        encoderCount: 0,
        jpegCount: 0,
        ofaCount: 0,
        memorySizeMB: (total / 8 * kind.eighths).saturating_sub(256),
    };
    // SAFETY: the caller passes a place for the structure.
    unsafe { write(info, found) }
}

/// What a compute instance of a profile would have of a GPU instance. The stand-in knows its slices.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    instance: nvmlGpuInstance_t,
    profile: c_uint,
    engines: c_uint,
    info: *mut nvmlComputeInstanceProfileInfo_t,
) -> nvmlReturn_t {
    let kind = match place(instance as usize).and_then(|at| kind_of(&at)) {
        Ok(kind) => kind,
        Err(error) => return error,
    };
    let found = COMPUTE.iter().find(|(index, slices)| *index == profile && *slices <= kind.slices);
    let Some((id, slices)) = found.filter(|_| engines == 0) else { return NOT_SUPPORTED };
    let found = nvmlComputeInstanceProfileInfo_t {
        id: *id,
        sliceCount: *slices,
        instanceCount: kind.slices / slices,
        multiprocessorCount: 14 * slices,
        sharedCopyEngineCount: kind.slices,
        sharedDecoderCount: 0,
        sharedEncoderCount: 0,
        sharedJpegCount: 0,
        sharedOfaCount: 0,
    };
    // SAFETY: the caller passes a place for the structure.
    unsafe { write(info, found) }
}

/// What a return value means.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    match result {
        SUCCESS => c"Success",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        crate::UNINITIALIZED => c"Uninitialized",
        crate::DRIVER_NOT_LOADED => c"Driver Not Loaded",
        crate::GPU_IS_LOST => c"GPU is lost",
        crate::TIMEOUT => c"Timeout",
        crate::INSUFFICIENT_SIZE => c"Insufficient Size",
        _ => c"Unknown Error",
    }
    .as_ptr()
}
