{{/* Prefix of all names: the release's, with the chart's added unless it is in there already. */}}
{{- define "spillway.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* What a workload selects its pods by. Takes (dict "root" $ "component" "agent"). */}}
{{- define "spillway.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of every object. Takes (dict "root" $ "component" "agent"). */}}
{{- define "spillway.labels" -}}
{{ include "spillway.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* An image's name. Takes (dict "root" $ "image" .Values.agent.image). */}}
{{- define "spillway.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/*
The agent's affinity: what the values say, and on no machine whose labels say that whoever has the driver open must leave. Labels that are absent
say nothing. Takes .Values.agent.
*/}}
{{- define "spillway.agentAffinity" -}}
{{- $affinity := deepCopy (.affinity | default dict) -}}
{{- $leave := list -}}
{{- range .nvidia.pauseLabels -}}
{{- $leave = append $leave (dict "key" . "operator" "NotIn" "values" $.nvidia.pauseValues) -}}
{{- end -}}
{{- if $leave -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $required := $node.requiredDuringSchedulingIgnoredDuringExecution | default dict -}}
{{- $terms := list -}}
{{- range $required.nodeSelectorTerms | default (list dict) -}}
{{- $terms = append $terms (set . "matchExpressions" (concat (.matchExpressions | default list) $leave)) -}}
{{- end -}}
{{- $_ := set $required "nodeSelectorTerms" $terms -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" $required -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- with $affinity }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* The virtual nodes, in JSON: the names in the configuration's list, or the one name. Takes .Values.vk. */}}
{{- define "spillway.vkNodes" -}}
{{- $names := list -}}
{{- range .config.nodes -}}
{{- $names = append $names (required "each of vk.config.nodes needs a name" .name) -}}
{{- else -}}
{{- $names = list (required "vk.nodeName must not be empty" .nodeName) -}}
{{- end -}}
{{ toJson $names }}
{{- end -}}

{{/* Whether a configuration shares by MPS; empty if none does. Takes $. */}}
{{- define "spillway.mps" -}}
{{- with .Values.agent -}}
{{- if or (dig "sharing" "mps" false .config) (regexMatch "\\bmps\\b" (toJson .nodeConfig.map)) }}true{{ end -}}
{{- end -}}
{{- end -}}
