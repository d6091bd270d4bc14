package main

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

// controller makes volumes out of nothing. The driver has inline volumes only,
// whose attributes come from a pod; csi-sanity knows no pods, and takes the
// attributes of a volume from the controller that made it.
type controller struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
}

func newController() *grpc.Server {
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, controller{})
	csi.RegisterControllerServer(server, controller{})
	return server
}

func (controller) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: "controller.sanity.test", VendorVersion: "0"}, nil
}

func (controller) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{
		Capabilities: []*csi.PluginCapability{controllerService()},
	}, nil
}

func (controller) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

// An empty list: with any capability more, csi-sanity would have the volume
// attached before it is published, which kubelet never does for inline volumes.
func (controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

// The name is as good an id as any: csi-sanity never uses one twice.
func (controller) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return &csi.CreateVolumeResponse{
		Volume: &csi.Volume{
			VolumeId:      request.GetName(),
			VolumeContext: request.GetParameters(),
		},
	}, nil
}

func (controller) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

// controllerService is the capability that makes csi-sanity publish a volume
// for good instead of only asking for errors.
func controllerService() *csi.PluginCapability {
	return &csi.PluginCapability{
		Type: &csi.PluginCapability_Service_{
			Service: &csi.PluginCapability_Service{
				Type: csi.PluginCapability_Service_CONTROLLER_SERVICE,
			},
		},
	}
}
