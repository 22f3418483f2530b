{{- define "gpusession.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
{{- end }}

{{/* User name of the controller: policies and agents know it by that alone. */}}
{{- define "gpusession.controllerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpusession-controller
{{- end }}

{{/* Settings of one process as environment; names as in settings.py, without the prefix.
JSON, since toString would write 1000000 as 1e+06. */}}
{{- define "gpusession.settings" -}}
{{- range $name, $value := . }}
- name: GPUSESSION_{{ $name }}
  value: {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ $value | toJson | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "gpusession.gatewayScheme" -}}
{{- if .Values.gateway.tls.existingSecret -}}https{{- else -}}http{{- end -}}
{{- end }}

{{- define "gpusession.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
