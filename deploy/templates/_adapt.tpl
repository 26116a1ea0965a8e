{{/*
What the values change in an object: what kustomize does by `images` and by the components' patches.
It takes a dict with `object` and `root`, and changes the object.
*/}}
{{- define "kontrol.adapt" -}}
{{- $object := .object }}
{{- $values := .root.Values }}
{{- $pods := dict }}
{{- if eq $object.kind "CronJob" }}
  {{- $pods = $object.spec.jobTemplate.spec.template }}
{{- else if has $object.kind (list "Deployment" "StatefulSet") }}
  {{- $pods = $object.spec.template }}
{{- end }}
{{- if $pods }}
  {{- range $pods.spec.containers }}
    {{- if eq .image "kontrol" }}
      {{- $_ := set . "image" (printf "%s:%v" $values.image.repository $values.image.tag) }}
    {{- else if $values.etcd.image }}
      {{- $_ := set . "image" $values.etcd.image }}
    {{- end }}
    {{- if $values.image.pullPolicy }}{{ $_ := set . "imagePullPolicy" $values.image.pullPolicy }}{{ end }}
  {{- end }}
  {{- with $values.image.pullSecrets }}{{ $_ := set $pods.spec "imagePullSecrets" . }}{{ end }}
  {{- if $values.openshift.enabled }}
    {{- range list "runAsUser" "runAsGroup" "fsGroup" "fsGroupChangePolicy" }}
      {{- $_ := unset $pods.spec.securityContext . }}
    {{- end }}
  {{- end }}
  {{- if and $values.zones.enabled (ne $object.kind "CronJob") }}
    {{- $strict := eq $object.kind "StatefulSet" }}
    {{- $spread := dict "maxSkew" 1 "topologyKey" "topology.kubernetes.io/zone" }}
    {{- $_ := set $spread "whenUnsatisfiable" (ternary "DoNotSchedule" "ScheduleAnyway" $strict) }}
    {{- $_ := set $spread "labelSelector" $object.spec.selector }}
    {{- $_ := set $pods.spec "topologySpreadConstraints" (list $spread) }}
  {{- end }}
{{- end }}
{{- if eq $object.kind "Deployment" }}
  {{- $container := first $pods.spec.containers }}
  {{- $_ := set $object.spec "replicas" (int $values.masters.replicas) }}
  {{- if $values.egress.enabled }}
    {{- $_ := set $container "env" (append $container.env (dict "name" "KONTROL_CLOUD" "value" "none")) }}
  {{- end }}
  {{- range $name, $value := $values.masters.env }}
    {{- $_ := set $container "env" (append $container.env (dict "name" $name "value" (toString $value))) }}
  {{- end }}
  {{- with $values.masters.resources }}{{ $_ := set $container "resources" . }}{{ end }}
  {{- /* A new callback means new masters: kustomize names the ConfigMap for its content. */}}
  {{- $digest := include "kontrol.callback" .root | sha256sum }}
  {{- $_ := set $pods.metadata "annotations" (dict "checksum/callback" $digest) }}
{{- end }}
{{- if eq $object.kind "StatefulSet" }}
  {{- $container := first $pods.spec.containers }}
  {{- $claim := first $object.spec.volumeClaimTemplates }}
  {{- $_ := set $claim.spec.resources.requests "storage" $values.etcd.storage }}
  {{- with $values.etcd.storageClass }}{{ $_ := set $claim.spec "storageClassName" . }}{{ end }}
  {{- with $values.etcd.resources }}{{ $_ := set $container "resources" . }}{{ end }}
  {{- $command := list }}
  {{- range $container.command }}
    {{- $quota := printf "--quota-backend-bytes=%d" (int64 $values.etcd.quotaBytes) }}
    {{- $command = append $command (regexReplaceAll "^--quota-backend-bytes=.*" . $quota) }}
  {{- end }}
  {{- $_ := set $container "command" $command }}
{{- end }}
{{- end }}

{{- define "kontrol.callback" -}}
{{- .Values.callback | default (.Files.Get "masters/on-change") }}
{{- end }}
