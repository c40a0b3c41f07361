module github.com/distorch/distorch/tools

go 1.26.8

require (
	github.com/bufbuild/protocompile v0.14.1
	github.com/mmcloughlin/avo v0.5.0
	google.golang.org/protobuf v1.36.12
)

require (
	golang.org/x/mod v0.6.0 // indirect
	golang.org/x/sync v0.8.0 // indirect
	golang.org/x/sys v0.42.0 // indirect
	golang.org/x/tools v0.2.0 // indirect
	google.golang.org/grpc/cmd/protoc-gen-go-grpc v1.6.2 // indirect
)

tool (
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)
