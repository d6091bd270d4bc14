{{- define "aufs-csi.driver" -}}aufs-csi.dev{{- end }}

{{- define "aufs-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "aufs-csi.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "aufs-csi.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "aufs-csi.selector" -}}
app.kubernetes.io/name: {{ include "aufs-csi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end }}

{{- define "aufs-csi.labels" -}}
{{- with .Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "aufs-csi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "aufs-csi.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "aufs-csi.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "aufs-csi.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "aufs-csi.kubelet" -}}
{{- trimSuffix "/" .Values.kubeletRootDir }}
{{- end }}

{{- define "aufs-csi.union" -}}
{{- if .Values.aufsOnly.enabled }}aufs{{ else }}{{ .Values.union }}{{ end }}
{{- end }}

{{- define "aufs-csi.checkMode" -}}
{{- if .Values.aufsOnly.enabled }}Refuse{{ else }}{{ .Values.check.mode }}{{ end }}
{{- end }}

{{- /* Where probes and metrics are answered. */}}
{{- define "aufs-csi.httpHost" -}}
{{- if .Values.http.address }}
{{- .Values.http.address }}
{{- else if or .Values.metrics.podMonitor.enabled (not .Values.hostNetwork) -}}
0.0.0.0
{{- else -}}
127.0.0.1
{{- end }}
{{- end }}

{{- define "aufs-csi.httpAddress" -}}
{{- $host := include "aufs-csi.httpHost" . }}
{{- if contains ":" $host }}[{{ $host }}]{{ else }}{{ $host }}{{ end }}:{{ .Values.http.port }}
{{- end }}

{{- /* Where kubelet asks, which is the pod's address if this is empty. */}}
{{- define "aufs-csi.probeHost" -}}
{{- $host := include "aufs-csi.httpHost" . }}
{{- if and .Values.hostNetwork (has $host (list "127.0.0.1" "0.0.0.0")) -}}
127.0.0.1
{{- else if and .Values.hostNetwork (has $host (list "::1" "::")) -}}
::1
{{- else if not (has $host (list "0.0.0.0" "::")) }}
{{- $host }}
{{- end }}
{{- end }}

{{- /* Directories with images, of the option and of the policy, which wins over it,
as a JSON list. What is not mounted is not there for the plugin. */}}
{{- define "aufs-csi.localImages" -}}
{{- $all := list }}
{{- range concat .Values.localImages (default list .Values.policy.content.localImages) }}
{{- $path := clean . }}
{{- /* Mounts of the container's own, or of all of it. */}}
{{- $taken := concat (list "/" "/dev" "/etc" "/host" "/proc" "/sys" "/run" "/aufs-csi" $.Values.store.hostPath $.Values.store.runHostPath (include "aufs-csi.kubelet" $)) $.Values.registries.certsDirs $.Values.registries.caHostDirs }}
{{- if has $path $taken }}
{{- fail (printf "localImages: %s cannot be mounted, for the container has something of its own there; give a directory below it" $path) }}
{{- end }}
{{- $all = append $all $path }}
{{- end }}
{{- $all | uniq | toJson }}
{{- end }}

{{- /* Volumes that one directory of the nodes each is. */}}
{{- define "aufs-csi.directoryName" -}}
{{- printf "%s-%s" .prefix (sha256sum .path | trunc 8) }}
{{- end }}

{{- define "aufs-csi.usesPolicy" -}}
{{- if or .Values.policy.content .Values.policy.existingConfigMap }}yes{{ end }}
{{- end }}

{{- define "aufs-csi.usesCluster" -}}
{{- if or .Values.events.enabled .Values.startupTaint.enabled }}yes{{ end }}
{{- end }}
