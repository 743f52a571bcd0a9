//! What `nvml-wrapper` leaves out, by its raw layer: kinds of events that are newer than it, to whom an event happened when the GPU is
//! partitioned, values by number of one link, which instances a MIG device is made of, and the fabric that a GPU is attached to.

#![allow(unsafe_code, reason = "these functions of NVML have no safe wrapper")]

use std::mem;

use nvml_wrapper::{
    Device, EventSet, Nvml,
    enums::device::SampleValue,
    error::{NvmlError, nvml_try},
    struct_wrappers::device::FieldValueSample,
};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventTypeXidCriticalError, nvmlFieldValue_t, nvmlGpuFabricInfo_t,
    nvmlReturn_t,
};

/// What NVML says where there is no instance.
const NO_INSTANCE: u32 = u32::MAX;
/// `NVML_GPU_FABRIC_STATE_COMPLETED`
const FABRIC_COMPLETED: u8 = 3;

/// Something that happened to a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Of which GPU, if NVML knows.
    pub(super) uuid: Option<String>,
    /// What kind of event: one of `nvmlEventType…`.
    pub(super) kind: u64,
    /// A critical XID, if it is one.
    pub(super) xid: Option<u64>,
    /// The GPU instance that it happened to, if it was one.
    pub(super) gpu_instance: Option<u32>,
    /// The compute instance that it happened to, if it was one.
    pub(super) compute_instance: Option<u32>,
}

/// Waits for one event.
pub(super) fn wait(nvml: &Nvml, set: &EventSet<'_>, milliseconds: u32) -> Result<Event, NvmlError> {
    let wait = symbol(&nvml.lib().nvmlEventSetWait_v2)?;
    // SAFETY: all of its fields are numbers or pointers, for which zero is a value.
    let mut data: nvmlEventData_t = unsafe { mem::zeroed() };
    // SAFETY: the set is alive as long as `set` is, and `data` for the duration of the call.
    nvml_try(unsafe { wait(set.handle(), &raw mut data, milliseconds) })?;
    // SAFETY: NVML gave the handle, and checks it at every use.
    let device = unsafe { Device::new(data.device, nvml) };
    let known = |id: u32| (id != NO_INSTANCE).then_some(id);
    Ok(Event {
        uuid: device.uuid().ok(),
        kind: data.eventType,
        xid: (data.eventType == u64::from(nvmlEventTypeXidCriticalError)).then_some(data.eventData),
        gpu_instance: known(data.gpuInstanceId),
        compute_instance: known(data.computeInstanceId),
    })
}

/// The kinds of events that a GPU has, those included that are newer than the wrapper.
pub(super) fn event_kinds(device: &Device<'_>) -> Result<u64, NvmlError> {
    let function = symbol(&device.nvml().lib().nvmlDeviceGetSupportedEventTypes)?;
    let mut kinds = 0;
    // SAFETY: the handle is valid as long as `device` is, and `kinds` for the duration of the call.
    nvml_try(unsafe { function(device.handle(), &raw mut kinds) })?;
    Ok(kinds)
}

/// Values by number and scope (the link, where it is one's), all in one call. None: this one is not available.
pub(super) fn fields(device: &Device<'_>, asked: &[(u32, u32)]) -> Vec<Option<SampleValue>> {
    let all = || -> Result<Vec<nvmlFieldValue_t>, NvmlError> {
        let function = symbol(&device.nvml().lib().nvmlDeviceGetFieldValues)?;
        let field = |&(id, scope): &(u32, u32)| {
            // SAFETY: all of its fields are numbers, or a union of numbers.
            let mut field: nvmlFieldValue_t = unsafe { mem::zeroed() };
            (field.fieldId, field.scopeId) = (id, scope);
            field
        };
        let mut values: Vec<_> = asked.iter().map(field).collect();
        let count = i32::try_from(values.len()).map_err(|_| NvmlError::InvalidArg)?;
        // SAFETY: the handle is valid as long as `device` is; there are `count` values, for the duration of the call.
        nvml_try(unsafe { function(device.handle(), count, values.as_mut_ptr()) })?;
        Ok(values)
    };
    let value = |value| FieldValueSample::try_from(value).ok()?.value.ok();
    all().map_or_else(
        |_| asked.iter().map(|_| None).collect(),
        |values| values.into_iter().map(value).collect(),
    )
}

/// The GPU instance and the compute instance of a MIG device.
pub(super) fn instance(device: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let lib = device.nvml().lib();
    let ask = |function: unsafe extern "C" fn(nvmlDevice_t, *mut u32) -> nvmlReturn_t| {
        let mut id = 0;
        // SAFETY: the handle is valid as long as `device` is, and `id` for the duration of the call.
        nvml_try(unsafe { function(device.handle(), &raw mut id) }).map(|()| id)
    };
    Ok((ask(symbol(&lib.nvmlDeviceGetGpuInstanceId)?)?, ask(symbol(&lib.nvmlDeviceGetComputeInstanceId)?)?))
}

/// The fabric that a GPU is attached to: the cluster's UUID and the clique. None where it is attached to none, or not yet.
pub(super) fn fabric(device: &Device<'_>) -> Option<([u8; 16], u32)> {
    let function = symbol(&device.nvml().lib().nvmlDeviceGetGpuFabricInfo).ok()?;
    // SAFETY: all of its fields are numbers.
    let mut info: nvmlGpuFabricInfo_t = unsafe { mem::zeroed() };
    // SAFETY: the handle is valid as long as `device` is, and `info` for the duration of the call.
    nvml_try(unsafe { function(device.handle(), &raw mut info) }).ok()?;
    nvml_try(info.status).ok()?;
    let attached = info.state == FABRIC_COMPLETED && info.clusterUuid != [0; 16];
    attached.then_some((info.clusterUuid, info.cliqueId))
}

/// A function of the library, unless it is too old to have it.
fn symbol<T: Copy, E: ToString>(found: &Result<T, E>) -> Result<T, NvmlError> {
    found.as_ref().copied().map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))
}
