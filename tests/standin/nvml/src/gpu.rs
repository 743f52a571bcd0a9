//! What a GPU says of itself, beyond its place.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong},
    fs,
    path::Path,
};

use nvml_wrapper_sys::bindings::{
    nvmlBrandType_t, nvmlComputeMode_t, nvmlDevice_t, nvmlDeviceArchitecture_t, nvmlEccCounterType_t,
    nvmlEnableState_t, nvmlGpuFabricInfo_t, nvmlGpuTopologyLevel_t, nvmlMemory_t, nvmlMemory_v2_t,
    nvmlMemoryErrorType_t, nvmlPciInfo_t, nvmlProcessInfo_t,
    nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND, nvmlReturn_t, nvmlTemperatureThresholds_t,
    nvmlUtilization_t,
};

use crate::{
    INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, UNINITIALIZED, folder, gpu, mig, number,
    pci_info, session, spent, whole_gpu, write, write_attribute, write_text,
};

const MIB: u64 = 1024 * 1024;
/// `NVML_TEMPERATURE_THRESHOLD_SLOWDOWN`
const SLOWDOWN: nvmlTemperatureThresholds_t = 1;
/// `NVML_GPU_FABRIC_STATE_COMPLETED`
const FABRIC_COMPLETED: u8 = 3;
/// `NVML_NVLINK_MAX_LINKS`
const NVLINKS: c_uint = 18;

/// The version of CUDA that the driver has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match folder::of_the_machine("cuda-version").and_then(|text| text.parse().ok()) {
        // SAFETY: the caller passes a place for the number.
        Some(number) => unsafe { write(version, number) },
        None => NOT_FOUND,
    }
}

/// The same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: the caller vouches for it.
    unsafe { nvmlSystemGetCudaDriverVersion_v2(version) }
}

/// The library's own version: the driver's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match folder::driver_version() {
        // SAFETY: the caller says that `version` has room for `length` bytes.
        Some(text) => unsafe { write_text(version, length, &text) },
        None => UNINITIALIZED,
    }
}

/// The handle of the GPU or MIG device with this UUID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if uuid.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, so the caller vouches for a C string.
    let wanted = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    let gpus = session().gpus.clone();
    for (place, gpu) in gpus.iter().enumerate() {
        let handle = (place + 1) as nvmlDevice_t;
        if folder::uuid(gpu) == wanted {
            // SAFETY: the caller passes a place for the handle.
            return unsafe { write(device, handle) };
        }
        let migs = folder::migs(gpu);
        if let Some(index) = migs.iter().position(|mig| folder::uuid(mig) == wanted) {
            // SAFETY: as above.
            return unsafe { mig::nvmlDeviceGetMigDeviceHandleByIndex(handle, number(index), device) };
        }
    }
    NOT_FOUND
}

/// A GPU's index.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match whole_gpu(device) {
        // SAFETY: the caller passes a place for the number.
        Ok(_) => unsafe { write(index, number(device as usize - 1)) },
        Err(error) => error,
    }
}

/// What the vendor calls it; a MIG device, by its GPU and its profile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let folder = match gpu(device) {
        Ok(folder) => folder,
        Err(error) => return error,
    };
    let found = match folder::parent(&folder) {
        None => folder::text(&folder, "name"),
        Some(gpu) => folder::text(&folder, "profile")
            .map(|profile| format!("{} MIG {profile}", folder::text(&gpu, "name").unwrap_or_default())),
    };
    match found {
        // SAFETY: the caller says that `name` has room for `length` bytes.
        Some(text) => unsafe { write_text(name, length, &text) },
        None => NOT_SUPPORTED,
    }
}

/// Its brand.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetBrand(
    device: nvmlDevice_t,
    brand: *mut nvmlBrandType_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "brand", brand) }
}

/// Its architecture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetArchitecture(
    device: nvmlDevice_t,
    architecture: *mut nvmlDeviceArchitecture_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "architecture", architecture) }
}

/// CUDA's compute capability.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let text = match gpu(device) {
        Ok(gpu) => folder::text(&gpu, "compute-capability"),
        Err(error) => return error,
    };
    let parsed = text.as_deref().and_then(|text| text.split_once('.'));
    let parsed = parsed.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match parsed {
        Some(found) => {
            // SAFETY: the caller passes places for both.
            let wrote = unsafe { write(major, found.0) };
            // SAFETY: as above.
            wrote.max(unsafe { write(minor, found.1) })
        }
        None => NOT_SUPPORTED,
    }
}

fn memory(device: nvmlDevice_t) -> Result<(u64, u64), nvmlReturn_t> {
    let gpu = gpu(device)?;
    let total: u64 = folder::number(&gpu, "memory-total").ok_or(NOT_SUPPORTED)?;
    let used: u64 = folder::number(&gpu, "memory-used").unwrap_or(0);
    Ok((total.saturating_mul(MIB), used.saturating_mul(MIB)))
}

/// Its memory, in bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    info: *mut nvmlMemory_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match memory(device) {
        // SAFETY: the caller passes a place for the structure.
        Ok((total, used)) => unsafe {
            write(info, nvmlMemory_t { total, free: total.saturating_sub(used), used })
        },
        Err(error) => error,
    }
}

/// Its memory, in bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    info: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match memory(device) {
        Ok((total, used)) => {
            let version = number(size_of::<nvmlMemory_v2_t>()) | 2 << 24;
            let free = total.saturating_sub(used);
            // SAFETY: the caller passes a place for the structure.
            unsafe { write(info, nvmlMemory_v2_t { version, total, reserved: 0, free, used }) }
        }
        Err(error) => error,
    }
}

/// What it draws, in milliwatts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "power", power) }
}

/// How busy it is, in percent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    utilization: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let gpu = match gpu(device) {
        Ok(gpu) => gpu,
        Err(error) => return error,
    };
    match folder::number(&gpu, "utilization") {
        // SAFETY: the caller passes a place for the structure.
        Some(busy) if mig::count(&gpu) == 0 => unsafe {
            write(utilization, nvmlUtilization_t { gpu: busy, memory: 0 })
        },
        _ => NOT_SUPPORTED,
    }
}

/// A temperature from which on something happens. The stand-in has the slowdown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(
    device: nvmlDevice_t,
    threshold: nvmlTemperatureThresholds_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if threshold != SLOWDOWN {
        return NOT_SUPPORTED;
    }
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "temperature-slowdown", celsius) }
}

/// Errors of its memory since the driver was loaded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: nvmlMemoryErrorType_t,
    counter: nvmlEccCounterType_t,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if counter != 0 {
        return NOT_SUPPORTED;
    }
    let name = if kind == 0 { "ecc-corrected" } else { "ecc-uncorrected" };
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, name, count) }
}

/// How many processes may use it at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeMode(
    device: nvmlDevice_t,
    mode: *mut nvmlComputeMode_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "compute-mode", mode) }
}

/// Sets how many processes may use it at once.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceSetComputeMode(device: nvmlDevice_t, mode: nvmlComputeMode_t) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match whole_gpu(device) {
        Ok(gpu) if fs::write(gpu.join("compute-mode"), mode.to_string()).is_ok() => SUCCESS,
        Ok(_) => NOT_SUPPORTED,
        Err(error) => error,
    }
}

/// The kinds of events that it has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: *mut c_ulonglong,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match whole_gpu(device) {
        // SAFETY: the caller passes a place for the bits.
        Ok(gpu) => unsafe { write(types, folder::event_types(&gpu)) },
        Err(error) => error,
    }
}

/// The first word and the rest of what is said of a link.
pub(crate) fn nvlink(device: nvmlDevice_t, link: c_uint) -> Result<(String, String), nvmlReturn_t> {
    let gpu = whole_gpu(device)?;
    if link >= NVLINKS {
        return Err(INVALID_ARGUMENT);
    }
    let text = folder::text(&gpu.join("nvlinks"), &link.to_string()).ok_or(NOT_SUPPORTED)?;
    let (state, remote) = text.split_once(' ').unwrap_or((&text, ""));
    Ok((state.to_owned(), remote.to_owned()))
}

/// Whether a link is up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    active: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match nvlink(device, link) {
        // SAFETY: the caller passes a place for the answer.
        Ok((state, _)) => unsafe { write(active, (state == "up").into()) },
        Err(error) => error,
    }
}

/// What is at the other end of a link.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: nvmlDevice_t,
    link: c_uint,
    pci: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match nvlink(device, link) {
        // SAFETY: the caller passes a place for the structure.
        Ok((_, remote)) => unsafe { write(pci, pci_info(&remote)) },
        Err(error) => error,
    }
}

/// How close two GPUs are on the bus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: nvmlDevice_t,
    other: nvmlDevice_t,
    level: *mut nvmlGpuTopologyLevel_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let (one, other) = match (whole_gpu(one), whole_gpu(other)) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    let said = |from: &Path, to: &Path| folder::number(&from.join("topology"), &folder::uuid(to));
    match said(&one, &other).or_else(|| said(&other, &one)) {
        // SAFETY: the caller passes a place for the number.
        Some(found) => unsafe { write(level, found) },
        None => NOT_SUPPORTED,
    }
}

/// The fabric that it is attached to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuFabricInfo(
    device: nvmlDevice_t,
    info: *mut nvmlGpuFabricInfo_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let text = match whole_gpu(device) {
        Ok(gpu) => folder::text(&gpu, "fabric"),
        Err(error) => return error,
    };
    let parse = |text: &str| {
        let (cluster, clique) = text.split_once(' ')?;
        let cluster = u128::from_str_radix(&cluster.replace('-', ""), 16).ok()?;
        Some(nvmlGpuFabricInfo_t {
            clusterUuid: cluster.to_be_bytes(),
            status: SUCCESS,
            cliqueId: clique.parse().ok()?,
            state: FABRIC_COMPLETED,
        })
    };
    match text.as_deref().and_then(parse) {
        // SAFETY: the caller passes a place for the structure.
        Some(found) => unsafe { write(info, found) },
        None => NOT_SUPPORTED,
    }
}

/// # Safety
/// `count` is null or may be read and written, and as many entries as it says may be written to `infos`.
unsafe fn processes(
    device: nvmlDevice_t,
    kind: &str,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let gpu = match gpu(device) {
        Ok(gpu) => gpu,
        Err(error) => return error,
    };
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    let found: Vec<_> = folder::processes(&gpu).into_iter().filter(|process| process.kind == kind).collect();
    // SAFETY: not null, so the caller vouches for it.
    let room = unsafe { count.read() } as usize;
    // SAFETY: as above.
    unsafe { count.write(number(found.len())) };
    if found.is_empty() {
        return SUCCESS;
    }
    if found.len() > room || infos.is_null() {
        return INSUFFICIENT_SIZE;
    }
    for (place, process) in found.iter().enumerate() {
        let (gpu_instance, compute_instance) = process.instance.unwrap_or((c_uint::MAX, c_uint::MAX));
        let info = nvmlProcessInfo_t {
            pid: process.pid,
            // All ones: not available.
            usedGpuMemory: process.mib.map_or(u64::MAX, |mib| mib.saturating_mul(MIB)),
            gpuInstanceId: gpu_instance,
            computeInstanceId: compute_instance,
        };
        // SAFETY: the caller vouches for `room` entries, and there are no more than that.
        unsafe { infos.add(place).write(info) };
    }
    SUCCESS
}

/// The processes that compute on it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller vouches for both.
    unsafe { processes(device, "compute", count, infos) }
}

/// The processes that draw with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller vouches for both.
    unsafe { processes(device, "graphics", count, infos) }
}

/// The processes that compute on it by the multi-process service.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller vouches for both.
    unsafe { processes(device, "mps", count, infos) }
}
