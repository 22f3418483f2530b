{{- define "gpusession.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
{{- end }}

{{/* User name of the controller: policies and agents know it by that alone. */}}
{{- define "gpusession.controllerUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:gpusession-controller
{{- end }}

{{/* Settings of one process as environment; names as in settings.py, without the prefix. */}}
{{- define "gpusession.settings" -}}
{{- range $name, $value := . }}
- name: GPUSESSION_{{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
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
