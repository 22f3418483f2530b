//go:build tools

// Package helm pins the Helm that the chart is tested with: go.mod and go.sum name its exact
// sources, and helm_tool.py builds it from the Go module proxy.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
