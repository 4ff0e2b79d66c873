package main

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestCapabilitiesAreTheDefaultOnesWithoutTheDroppedAndWithTheAdded(t *testing.T) {
	yes := true
	context := func(add, drop []corev1.Capability) *corev1.SecurityContext {
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: add, Drop: drop}}
	}
	for name, c := range map[string]struct {
		context *corev1.SecurityContext
		limited bool
		want    []string
	}{
		"no security context":    {context: nil},
		"nothing said":           {context: &corev1.SecurityContext{}},
		"privileged wins":        {context: &corev1.SecurityContext{Privileged: &yes, Capabilities: &corev1.Capabilities{}}},
		"all dropped":            {context: context(nil, []corev1.Capability{"ALL"}), limited: true},
		"all dropped, two added": {context: context([]corev1.Capability{"BPF", "CAP_NET_ADMIN"}, []corev1.Capability{"ALL"}), limited: true, want: []string{"NET_ADMIN", "BPF"}},
		"all but one":            {context: context([]corev1.Capability{"ALL"}, []corev1.Capability{"SYS_ADMIN"}), limited: true, want: slices.DeleteFunc(slices.Clone(capabilityNames), func(name string) bool { return name == "SYS_ADMIN" })},
	} {
		got, err := readPrivilege(c.context)
		if err != nil || got.Limited != c.limited || !slices.Equal(got.Capabilities, c.want) {
			t.Errorf("%s: got %v %v (%v), want %v %v", name, got.Limited, got.Capabilities, err, c.limited, c.want)
		}
	}
	got, err := readPrivilege(context(nil, []corev1.Capability{"KILL"}))
	if err != nil || len(got.Capabilities) != len(defaultCapabilities)-1 || slices.Contains(got.Capabilities, "KILL") {
		t.Errorf("the default without one: got %v (%v)", got.Capabilities, err)
	}
	if _, err := readPrivilege(context([]corev1.Capability{"FLY"}, nil)); err == nil {
		t.Error("a capability that does not exist was accepted")
	}
}
