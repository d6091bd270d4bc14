package main

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// fakeDriver answers with all that an answer can consist of.
type fakeDriver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	calls chan call
}

type call struct {
	metadata metadata.MD
	left     time.Duration
	request  *csi.NodePublishVolumeRequest
}

func (fakeDriver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

func (driver fakeDriver) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	received, _ := metadata.FromIncomingContext(ctx)
	var left time.Duration
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	driver.calls <- call{received, left, request}
	_ = grpc.SetHeader(ctx, metadata.Pairs("at-first", "1"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("at-last", "2", "some-bin", "\x00\xff"))
	if request.GetVolumeId() == "" {
		refusal, err := status.New(codes.Aborted, "50 % – still pulling\n").
			WithDetails(durationpb.New(time.Second))
		if err != nil {
			return nil, err
		}
		return nil, refusal.Err()
	}
	answer := &csi.NodePublishVolumeResponse{}
	answer.ProtoReflect().SetUnknown(unknownField())
	return answer, nil
}

func (fakeDriver) NodeUnpublishVolume(ctx context.Context, _ *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

// unknownField is one that no version of the specification has.
func unknownField() []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, 4000, protowire.VarintType), 7)
}

func listen(t *testing.T, server *grpc.Server) string {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return path
}

// connect gives a connection through a proxy, and what the driver behind it saw.
func connect(t *testing.T) (*grpc.ClientConn, <-chan call) {
	driver := fakeDriver{calls: make(chan call, 1)}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, driver)
	csi.RegisterNodeServer(server, driver)
	proxy, err := newProxy(listen(t, server))
	if err != nil {
		t.Fatal(err)
	}
	connection, err := grpc.NewClient("unix://"+listen(t, proxy),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return connection, driver.calls
}

func TestTheRequestPassesWithMetadataAndDeadline(t *testing.T) {
	connection, calls := connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "of-ours", "a", "of-ours", "b")
	request := &csi.NodePublishVolumeRequest{VolumeId: "v", VolumeContext: map[string]string{"k": "v"}}
	request.ProtoReflect().SetUnknown(unknownField())

	answer, err := csi.NewNodeClient(connection).NodePublishVolume(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if got := answer.ProtoReflect().GetUnknown(); !slices.Equal(got, unknownField()) {
		t.Errorf("the answer has the unknown fields %x", got)
	}
	seen := <-calls
	if !proto.Equal(seen.request, request) {
		t.Errorf("the request is %v", seen.request)
	}
	if got := seen.metadata.Get("of-ours"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the metadata is %v", seen.metadata)
	}
	for _, key := range []string{"content-type", ":authority", "user-agent"} {
		if got := seen.metadata.Get(key); len(got) != 1 {
			t.Errorf("%s is %q", key, got)
		}
	}
	if got := seen.metadata.Get("content-type"); !slices.Equal(got, []string{"application/grpc"}) {
		t.Errorf("the content type is %q", got)
	}
	if seen.left <= 50*time.Second || seen.left > time.Minute {
		t.Errorf("%v were left", seen.left)
	}
}

func TestAnErrorPassesWithItsMetadata(t *testing.T) {
	connection, _ := connect(t)
	var header, trailer metadata.MD
	_, err := csi.NewNodeClient(connection).NodePublishVolume(t.Context(),
		&csi.NodePublishVolumeRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
	got := status.Convert(err)
	if got.Code() != codes.Aborted || got.Message() != "50 % – still pulling\n" || len(got.Details()) != 1 {
		t.Errorf("the status is %v", got.Proto())
	}
	if value := header.Get("at-first"); !slices.Equal(value, []string{"1"}) {
		t.Errorf("the header is %v", header)
	}
	if value := trailer.Get("at-last"); !slices.Equal(value, []string{"2"}) {
		t.Errorf("the trailer is %v", trailer)
	}
	if value := trailer.Get("some-bin"); !slices.Equal(value, []string{"\x00\xff"}) {
		t.Errorf("the trailer is %v", trailer)
	}
}

func TestADeadlineEndsTheCall(t *testing.T) {
	connection, _ := connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := csi.NewNodeClient(connection).NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the call ended with %v", err)
	}
}

func TestWhatTheDriverLacksIsUnimplemented(t *testing.T) {
	connection, _ := connect(t)
	_, err := csi.NewControllerClient(connection).CreateVolume(t.Context(), &csi.CreateVolumeRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("the call ended with %v", err)
	}
}

func TestOnlyTheCapabilitiesAreAddedTo(t *testing.T) {
	connection, _ := connect(t)
	answer, err := csi.NewIdentityClient(connection).GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{controllerService()}}
	if !proto.Equal(answer, want) {
		t.Errorf("the capabilities are %v", answer)
	}
}
