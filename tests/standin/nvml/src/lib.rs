//! A stand-in for NVIDIA's `libnvidia-ml.so.1`, for machines without the driver. It implements the functions that Spillway's agent
//! calls, with their documented meaning, over a folder that a test or a person changes while it runs.
//!
//! The folder lies beside the library and is called like it with `.d` at the end, so nothing has to be configured:
//!
//! ```text
//! libnvidia-ml.so.1.d/
//!   driver-version          text; without it nvmlInit says that the driver is not loaded, and every other question fails
//!   hang                    as long as it exists nothing is answered, as by a driver that hangs
//!   cuda-version            1000 * major + 10 * minor
//!   gpus/<uuid>/            one folder a GPU, called by its UUID: GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
//!     lost                  if it exists, every question about the GPU is answered with "GPU is lost"
//!     bus-id                PCI address, 00000000:3B:00.0; GPUs are ordered by it
//!     minor                 N of /dev/nvidiaN
//!     name                  what the vendor calls it
//!     brand architecture    nvmlBrandType_t, nvmlDeviceArchitecture_t
//!     compute-capability    CUDA's, 8.0
//!     memory-total memory-used         MiB
//!     temperature temperature-slowdown degrees Celsius
//!     power                 milliwatts
//!     utilization           percent; not supported while MIG is enabled
//!     process-utilization   one line a sample: <pid> <percent>; not supported without it, or while MIG is enabled
//!     clocks-event-reasons  nvmlClocksEventReasons
//!     compute-mode          nvmlComputeMode_t; it is written, too
//!     ecc-corrected ecc-uncorrected    volatile counters
//!     recovery-action       nvmlDeviceGpuRecoveryAction_t
//!     remapped-uncorrected remapped-pending remapped-failure retired-pending nvlink-replay nvlink-recovery
//!     nvlinks/<n>           `up` or `down`, and the PCI address at the other end
//!     event-types           nvmlEventType…, what the driver tells by itself of this GPU; without it XIDs alone
//!     gpm                   if it exists, MIG devices' utilisation is measured
//!     topology/<uuid>       nvmlGpuTopologyLevel_t to that GPU; one direction is enough
//!     fabric                the cluster's UUID and the clique
//!     processes             one line a process: <pid> <MiB or -> <compute, graphics or mps> [<GPU instance> <compute instance>]
//!     mig-mode              0 or 1; without it the GPU can't be partitioned
//!     mig/<uuid>/           one folder a MIG device: MIG-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, as long as mig-mode is 1
//!       gi ci               numbers of its GPU instance and compute instance; MIG devices are ordered by them
//!       profile             1g.5gb
//!       utilization         percent
//!       memory-total multiprocessors slices-gi slices-ci engines-copy engines-decoder engines-encoder engines-jpeg engines-ofa
//!   spent                   if it exists when the library is loaded and has 8 bytes: the CPU time of answering, in nanoseconds, is added to it
//!   xids                    one line an event, `<uuid> <xid> [<GPU instance> <compute instance>]` appended at the end; `-` for the
//!                           UUID names no GPU. An event of another kind has `type=<nvmlEventType…>` instead of the number
//! ```
//!
//! A file an attribute; whatever is missing is not supported, and sentinels can be written as they are.
//!
//! Like the real library it knows the GPUs that were there at `nvmlInit`: one that is added later is seen after the next
//! `nvmlInit`, one that is taken away is lost until then.

// A C interface is made of pointers from the caller.
#![allow(unsafe_code, non_snake_case, clippy::missing_safety_doc)]

mod folder;
pub mod gpu;
pub mod instances;
pub mod mig;
mod spent;
pub mod usage;

use std::{
    collections::BTreeMap,
    ffi::{c_char, c_int, c_uint, c_ulonglong},
    path::PathBuf,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::{
    field_id::{
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_NVLINK_GET_STATE,
        NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
        NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_UNC,
        NVML_FI_DEV_RETIRED_PENDING,
    },
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t, nvmlPciInfo_t,
    nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED as DRIVER_NOT_LOADED,
    nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST as GPU_IS_LOST,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE,
    nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED as NOT_SUPPORTED, nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT,
    nvmlReturn_enum_NVML_ERROR_UNINITIALIZED as UNINITIALIZED, nvmlReturn_enum_NVML_ERROR_UNKNOWN as UNKNOWN,
    nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t, nvmlTemperatureSensors_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
};

/// How often a waiting event set looks for new events.
const POLL: Duration = Duration::from_millis(20);

/// What lies between an `nvmlInit` and its `nvmlShutdown`. Handles are indices, counted from one.
struct Session {
    inits: u32,
    gpus: Vec<PathBuf>,
    /// MIG devices that somebody has a handle of.
    migs: Vec<PathBuf>,
    sets: Vec<Option<EventSet>>,
}

struct EventSet {
    /// The kinds of events that are wanted, by the GPU's UUID.
    kinds: BTreeMap<String, u64>,
    /// How many lines of the event file have been delivered or passed over.
    read: usize,
}

static SESSION: Mutex<Session> =
    Mutex::new(Session { inits: 0, gpus: Vec::new(), migs: Vec::new(), sets: Vec::new() });

/// Handles of MIG devices begin here.
const MIG_HANDLES: usize = 1 << 16;

fn session() -> MutexGuard<'static, Session> {
    SESSION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts NVML: takes note of the GPUs that there are.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if folder::driver_version().is_none() {
        return DRIVER_NOT_LOADED;
    }
    let mut session = session();
    if session.inits == 0 {
        session.gpus = folder::gpus();
        session.migs.clear();
        session.sets.clear();
    }
    session.inits += 1;
    SUCCESS
}

/// Ends what [`nvmlInit_v2`] began.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let mut session = session();
    let Some(left) = session.inits.checked_sub(1) else { return UNINITIALIZED };
    session.inits = left;
    SUCCESS
}

/// The driver's version.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match folder::driver_version() {
        // SAFETY: the caller says that `version` has room for `length` bytes.
        Some(text) => unsafe { write_text(version, length, &text) },
        None => UNINITIALIZED,
    }
}

/// How many GPUs there were at `nvmlInit`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if folder::driver_version().is_none() {
        return UNKNOWN;
    }
    let session = session();
    if session.inits == 0 {
        return UNINITIALIZED;
    }
    // SAFETY: the caller passes a place for the count.
    unsafe { write(count, number(session.gpus.len())) }
}

/// A GPU's handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let handle = (index as usize + 1) as nvmlDevice_t;
    match gpu(handle) {
        // SAFETY: the caller passes a place for the handle.
        Ok(_) => unsafe { write(device, handle) },
        Err(error) => error,
    }
}

/// A GPU's UUID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match gpu(device) {
        // SAFETY: the caller says that `uuid` has room for `length` bytes.
        Ok(gpu) => unsafe { write_text(uuid, length, &folder::uuid(&gpu)) },
        Err(error) => error,
    }
}

/// N of `/dev/nvidiaN`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "minor", minor) }
}

/// A GPU's temperature in degrees Celsius; there is one sensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    sensor: nvmlTemperatureSensors_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if sensor != 0 {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller passes a place for the number.
    unsafe { write_attribute(device, "temperature", celsius) }
}

/// A GPU's place on the PCI bus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    pci: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let gpu = match gpu(device) {
        Ok(gpu) => gpu,
        Err(error) => return error,
    };
    match folder::text(&gpu, "bus-id") {
        // SAFETY: the caller passes a place for the structure.
        Some(bus_id) => unsafe { write(pci, pci_info(&bus_id)) },
        None => NOT_SUPPORTED,
    }
}

fn pci_info(bus_id: &str) -> nvmlPciInfo_t {
    let mut fields = bus_id.split([':', '.']).map(|field| c_uint::from_str_radix(field, 16).unwrap_or(0));
    let mut info = nvmlPciInfo_t {
        busIdLegacy: [0; 16],
        domain: fields.next().unwrap_or(0),
        bus: fields.next().unwrap_or(0),
        device: fields.next().unwrap_or(0),
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: [0; 32],
    };
    // The last byte of each stays zero.
    for (to, from) in info.busId.iter_mut().take(31).zip(bus_id.bytes()) {
        *to = from.cast_signed();
    }
    for (to, from) in info.busIdLegacy.iter_mut().take(15).zip(bus_id.bytes()) {
        *to = from.cast_signed();
    }
    info
}

/// The fields that the stand-in has, by the files that they are read from.
const FIELDS: [(c_uint, &str); 8] = [
    (NVML_FI_DEV_ECC_DBE_VOL_TOTAL, "ecc-uncorrected"),
    (NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, "recovery-action"),
    (NVML_FI_DEV_REMAPPED_UNC, "remapped-uncorrected"),
    (NVML_FI_DEV_REMAPPED_PENDING, "remapped-pending"),
    (NVML_FI_DEV_REMAPPED_FAILURE, "remapped-failure"),
    (NVML_FI_DEV_RETIRED_PENDING, "retired-pending"),
    (NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, "nvlink-replay"),
    (NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, "nvlink-recovery"),
];

/// Values by field ID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let gpu = match gpu(device) {
        Ok(gpu) => gpu,
        Err(error) => return error,
    };
    let Ok(count) = usize::try_from(count) else { return INVALID_ARGUMENT };
    if values.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller says that there are `count` values, and lends them for the duration of the call.
    for value in unsafe { std::slice::from_raw_parts_mut(values, count) } {
        let known = if value.fieldId == NVML_FI_DEV_NVLINK_GET_STATE {
            gpu::nvlink(device, value.scopeId).ok().map(|(state, _)| c_uint::from(state == "up"))
        } else {
            let field = FIELDS.iter().find(|(id, _)| *id == value.fieldId);
            field.and_then(|(_, name)| folder::number::<c_uint>(&gpu, name))
        };
        match known {
            Some(action) => {
                value.valueType = UNSIGNED_INT;
                value.value.uiVal = action;
                value.nvmlReturn = SUCCESS;
            }
            None => value.nvmlReturn = NOT_SUPPORTED,
        }
    }
    SUCCESS
}

/// A new, empty event set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let mut session = session();
    if session.inits == 0 {
        return UNINITIALIZED;
    }
    session.sets.push(Some(EventSet { kinds: BTreeMap::new(), read: folder::events().len() }));
    let handle = session.sets.len() as nvmlEventSet_t;
    // SAFETY: the caller passes a place for the handle.
    unsafe { write(set, handle) }
}

/// Adds a GPU to an event set.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let gpu = match gpu(device) {
        Ok(gpu) => gpu,
        Err(error) => return error,
    };
    if types & !folder::event_types(&gpu) != 0 {
        return NOT_SUPPORTED;
    }
    match session().sets.get_mut((set as usize).wrapping_sub(1)) {
        Some(Some(set)) => {
            *set.kinds.entry(folder::uuid(&gpu)).or_default() |= types;
            SUCCESS
        }
        _ => INVALID_ARGUMENT,
    }
}

/// Waits for one event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    event: *mut nvmlEventData_t,
    milliseconds: c_uint,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let deadline = Instant::now() + Duration::from_millis(milliseconds.into());
    // Watched before it is looked at, so that nothing is missed. It is the agent's CPU time: polling would be measured as its own.
    let changes = folder::Changes::watch();
    loop {
        match next_event(set) {
            // SAFETY: the caller passes a place for the event.
            Ok(Some(data)) => return unsafe { write(event, data) },
            Ok(None) if Instant::now() >= deadline => return TIMEOUT,
            Ok(None) => match &changes {
                Some(changes) => changes.wait(deadline.saturating_duration_since(Instant::now())),
                None => thread::sleep(POLL),
            },
            Err(error) => return error,
        }
    }
}

/// Ends an event set.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match session().sets.get_mut((set as usize).wrapping_sub(1)) {
        Some(entry @ Some(_)) => {
            *entry = None;
            SUCCESS
        }
        _ => INVALID_ARGUMENT,
    }
}

fn next_event(set: nvmlEventSet_t) -> Result<Option<nvmlEventData_t>, nvmlReturn_t> {
    let events = folder::events();
    let mut session = session();
    let Session { inits, gpus, sets, .. } = &mut *session;
    if *inits == 0 {
        return Err(UNINITIALIZED);
    }
    let Some(Some(set)) = sets.get_mut((set as usize).wrapping_sub(1)) else { return Err(INVALID_ARGUMENT) };
    while let Some(folder::Event { uuid, kind, number, instance }) = events.get(set.read) {
        set.read += 1;
        let index = gpus.iter().position(|gpu| folder::uuid(gpu) == *uuid);
        if uuid == "-" || set.kinds.get(uuid).is_some_and(|kinds| kinds & kind != 0) {
            let (gpu, compute) = instance.unwrap_or((c_uint::MAX, c_uint::MAX));
            return Ok(Some(nvmlEventData_t {
                device: index.map_or(0, |index| index + 1) as nvmlDevice_t,
                eventType: *kind,
                eventData: *number,
                gpuInstanceId: gpu,
                computeInstanceId: compute,
            }));
        }
    }
    Ok(None)
}

/// The folder of the GPU or MIG device that a handle means, if it can be asked.
fn gpu(device: nvmlDevice_t) -> Result<PathBuf, nvmlReturn_t> {
    let driver = folder::driver_version();
    let session = session();
    if session.inits == 0 {
        return Err(UNINITIALIZED);
    }
    if driver.is_none() {
        return Err(UNKNOWN);
    }
    let handle = device as usize;
    let folder = match handle.checked_sub(MIG_HANDLES) {
        Some(mig) => session.migs.get(mig),
        None => session.gpus.get(handle.wrapping_sub(1)),
    };
    let folder = folder.ok_or(INVALID_ARGUMENT)?;
    if folder::lost(folder) { Err(GPU_IS_LOST) } else { Ok(folder.clone()) }
}

/// The same, but not of a MIG device.
fn whole_gpu(device: nvmlDevice_t) -> Result<PathBuf, nvmlReturn_t> {
    let folder = gpu(device)?;
    if device as usize >= MIG_HANDLES { Err(INVALID_ARGUMENT) } else { Ok(folder) }
}

fn number(count: usize) -> c_uint {
    c_uint::try_from(count).unwrap_or(c_uint::MAX)
}

/// # Safety
/// `to` is null, or may be written to.
unsafe fn write<T>(to: *mut T, value: T) -> nvmlReturn_t {
    if to.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, so the caller vouches for it.
    unsafe { to.write(value) };
    SUCCESS
}

/// # Safety
/// `to` is null, or may be written to.
unsafe fn write_attribute<T: FromStr>(device: nvmlDevice_t, name: &str, to: *mut T) -> nvmlReturn_t {
    match gpu(device).map(|gpu| folder::number(&gpu, name)) {
        // SAFETY: the caller vouches for `to`.
        Ok(Some(value)) => unsafe { write(to, value) },
        Ok(None) => NOT_SUPPORTED,
        Err(error) => error,
    }
}

/// # Safety
/// `to` is null, or `length` bytes may be written there.
unsafe fn write_text(to: *mut c_char, length: c_uint, text: &str) -> nvmlReturn_t {
    if to.is_null() {
        return INVALID_ARGUMENT;
    }
    if text.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: not null, so the caller vouches for `length` bytes, and the text with its final zero is no longer.
    unsafe {
        to.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        to.add(text.len()).write(0);
    }
    SUCCESS
}
