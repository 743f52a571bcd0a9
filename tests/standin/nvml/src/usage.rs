//! Who computes how much: processes that share a GPU, and MIG devices.

use std::{
    ffi::{c_uint, c_ulonglong},
    path::PathBuf,
    ptr,
    time::{SystemTime, UNIX_EPOCH},
};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL as GRAPHICS_UTIL, nvmlGpmMetricsGet_t,
    nvmlGpmSample_t, nvmlProcessUtilizationSample_t, nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND,
    nvmlReturn_t,
};

use crate::{
    INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, SUCCESS, folder, gpu, mig, number, spent, whole_gpu,
    write, write_attribute,
};

/// Why the clocks are not as high as they could be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: *mut c_ulonglong,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the bits.
    unsafe { write_attribute(device, "clocks-event-reasons", reasons) }
}

/// How much each process has computed since then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    samples: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    _since: c_ulonglong,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    let text = match gpu(device) {
        Ok(gpu) if mig::count(&gpu) == 0 => folder::text(&gpu, "process-utilization"),
        Ok(_) => None,
        Err(error) => return error,
    };
    let Some(text) = text else { return NOT_SUPPORTED };
    let sample = |line: &str| {
        let (pid, percent) = line.split_once(' ')?;
        Some((pid.parse().ok()?, percent.parse().ok()?))
    };
    let found: Vec<(c_uint, c_uint)> = text.lines().filter_map(sample).collect();
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, so the caller vouches for it.
    let room = unsafe { count.replace(number(found.len())) } as usize;
    if found.is_empty() {
        return NOT_FOUND;
    }
    if samples.is_null() || found.len() > room {
        return INSUFFICIENT_SIZE;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    for (place, (pid, percent)) in found.into_iter().enumerate() {
        let sample = nvmlProcessUtilizationSample_t {
            pid,
            timeStamp: c_ulonglong::try_from(now).unwrap_or_default(),
            smUtil: percent,
            memUtil: 0,
            encUtil: 0,
            decUtil: 0,
        };
        // SAFETY: the caller vouches for `room` entries, and there are no more than that.
        unsafe { samples.add(place).write(sample) };
    }
    SUCCESS
}

/// What a sample was taken of.
struct Sample(Option<(PathBuf, c_uint)>);

/// A new sample, of nothing yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    // SAFETY: the caller passes a place for the handle.
    unsafe { write(sample, Box::into_raw(Box::new(Sample(None))).cast()) }
}

/// Ends a sample.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if sample.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: every handle comes from `nvmlGpmSampleAlloc`, and the caller gives it up.
    drop(unsafe { Box::from_raw(sample.cast::<Sample>()) });
    SUCCESS
}

/// Takes a sample of a GPU instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMigSampleGet(
    device: nvmlDevice_t,
    instance: c_uint,
    sample: nvmlGpmSample_t,
) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    match whole_gpu(device) {
        Ok(_) if sample.is_null() => INVALID_ARGUMENT,
        Ok(gpu) if gpu.join("gpm").exists() => {
            // SAFETY: every handle comes from `nvmlGpmSampleAlloc`.
            unsafe { *sample.cast::<Sample>() = Sample(Some((gpu, instance))) };
            SUCCESS
        }
        Ok(_) => NOT_SUPPORTED,
        Err(error) => error,
    }
}

/// What lies between two samples.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpmMetricsGet(request: *mut nvmlGpmMetricsGet_t) -> nvmlReturn_t {
    let _counted = spent::Counted::begin();
    if request.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, so the caller lends it for the duration of the call.
    let request = unsafe { &mut *request };
    // SAFETY: null, or a handle from `nvmlGpmSampleAlloc` that the caller has not given up.
    let samples =
        [request.sample1, request.sample2].map(|sample| unsafe { sample.cast::<Sample>().as_ref() });
    let [Some(Sample(Some(before))), Some(Sample(Some(after)))] = samples else { return INVALID_ARGUMENT };
    if before != after {
        return INVALID_ARGUMENT;
    }
    let (gpu, instance) = after;
    let mut migs = folder::migs(gpu).into_iter();
    let mig = migs.find(|mig| folder::number(mig, "gi") == Some(*instance));
    let busy = mig.and_then(|mig| folder::number::<f64>(&mig, "utilization"));
    for metric in request.metrics.iter_mut().take(request.numMetrics as usize) {
        (metric.metricInfo.shortName, metric.metricInfo.longName) = (ptr::null_mut(), ptr::null_mut());
        metric.metricInfo.unit = ptr::null_mut();
        match busy {
            Some(busy) if metric.metricId == GRAPHICS_UTIL => {
                (metric.value, metric.nvmlReturn) = (busy, SUCCESS);
            }
            _ => metric.nvmlReturn = NOT_SUPPORTED,
        }
    }
    SUCCESS
}
